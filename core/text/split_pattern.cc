#include "core/text/split_pattern.h"

#include <algorithm>
#include <array>

namespace stoker {
namespace {

// Unicode White_Space. PCRE2's own \s adds U+180E, which lost the property in Unicode 6.3 and which
// Oniguruma does not count.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// General categories only: a script name means script extensions in PCRE2 from 10.40 on.
constexpr std::array<std::string_view, 36> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
    "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
    "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn"};

// After "(?": group, four looks, caseless group.
constexpr std::array<std::string_view, 6> kGroups = {":", "=", "!", "<=", "<!", "i:"};

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  Result<std::string> run() {
    while (!rest_.empty()) {
      const char c = rest_[0];
      if (c == '\\') {
        RETURN_IF_ERROR(escape(/*in_class=*/false));
      } else if (c == '[') {
        RETURN_IF_ERROR(bracket_class());
      } else if (c == '(') {
        RETURN_IF_ERROR(group());
      } else if (c == '{') {
        RETURN_IF_ERROR(interval());
      } else if (c == '.' || c == '^' || c == '$') {
        return refuse(rest_.substr(0, 1));
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  Error refuse(std::string_view construct) const {
    return make_error(ErrorCode::kUnsupported, "the construct {} is not supported in a pattern",
                      construct.substr(0, 16));
  }

  void copy(std::size_t n) {
    out_.append(rest_.substr(0, n));
    rest_.remove_prefix(n);
  }

  Status escape(bool in_class) {
    if (rest_.size() < 2) return refuse("\\ at the end");
    const char c = rest_[1];
    if (c == 's' || c == 'S') return white_space(in_class);
    if (c == 'p' || c == 'P') return category();
    // Other letters and digits mean different things here and there, or are not worth the doubt.
    constexpr std::string_view kSame = "rntdD";
    if (is_alphanumeric(c) && kSame.find(c) == std::string_view::npos) {
      return refuse(rest_.substr(0, 2));
    }
    copy(2);
    return {};
  }

  Status white_space(bool in_class) {
    const bool negated = rest_[1] == 'S';
    if (in_class && negated) return refuse("\\S inside brackets");
    if (!in_class) out_.append(negated ? "[^" : "[");
    out_.append(kWhiteSpace);
    if (!in_class) out_.push_back(']');
    rest_.remove_prefix(2);
    return {};
  }

  Status category() {
    const std::size_t end = rest_.find('}');
    if (rest_.size() < 3 || rest_[2] != '{' || end == std::string_view::npos) {
      return refuse(rest_);
    }
    const std::string_view name = rest_.substr(3, end - 3);
    if (std::find(kCategories.begin(), kCategories.end(), name) == kCategories.end()) {
      return refuse(rest_.substr(0, end + 1));
    }
    copy(end + 1);
    return {};
  }

  Status bracket_class() {
    copy(1);
    if (rest_.starts_with('^')) copy(1);
    if (rest_.starts_with(']')) return refuse("] first in brackets");
    while (!rest_.starts_with(']')) {
      if (rest_.empty()) return refuse("[ without ]");
      if (rest_[0] == '[') return refuse("[ inside brackets");
      if (rest_.starts_with("&&")) return refuse("&&");
      if (rest_[0] == '\\') {
        RETURN_IF_ERROR(escape(/*in_class=*/true));
      } else {
        copy(1);
      }
    }
    copy(1);
    return {};
  }

  Status group() {
    if (rest_.starts_with("(*")) return refuse("(*");
    if (!rest_.starts_with("(?")) {
      copy(1);
      return {};
    }
    for (const std::string_view kind : kGroups) {
      if (rest_.substr(2).starts_with(kind)) {
        copy(2 + kind.size());
        return {};
      }
    }
    return refuse(rest_.substr(0, 4));
  }

  // {n}, {n,} and {n,m}, with at most ? behind: + is possessive in PCRE2 and a second repetition in
  // Oniguruma.
  Status interval() {
    std::size_t n = 1;
    const auto digits = [&] {
      const std::size_t begin = n;
      while (n < rest_.size() && rest_[n] >= '0' && rest_[n] <= '9') ++n;
      return n > begin;
    };
    bool good = digits();
    if (n < rest_.size() && rest_[n] == ',') {
      ++n;
      digits();
    }
    good = good && n < rest_.size() && rest_[n] == '}' && !rest_.substr(n + 1).starts_with('+');
    if (!good) return refuse(rest_);
    copy(n + 1);
    return {};
  }

  std::string_view rest_;
  std::string out_;
};

}  // namespace

Result<std::string> to_pcre2_pattern(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace stoker
