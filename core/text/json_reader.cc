// parse_json(). nlohmann's parser is no help here: it refuses NaN, 1e400 and integers above 1e308,
// which Python's reader takes, and reports an integer too large for 64 bits as a double.
#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <unordered_map>

#include "core/text/json_text.h"
#include "core/text/utf8.h"

namespace stoker {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, unsigned code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80u | ((code >> shift) & 0x3Fu)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0u | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0u | (code >> 12));
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xF0u | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

// The value of a number that does not fit a double: infinite or zero, by where its first digit
// other than 0 stands.
double saturated(std::string_view token) {
  const bool negative = token.front() == '-';
  if (negative) token.remove_prefix(1);
  const std::size_t e = token.find_first_of("eE");
  const std::string_view mantissa = token.substr(0, e);
  const bool exponent_negative = e != std::string_view::npos && token[e + 1] == '-';
  long long exponent = 0;
  for (std::size_t i = e; i < token.size(); ++i) {
    if (is_digit(token[i]) && exponent < 1'000'000'000'000)
      exponent = exponent * 10 + (token[i] - '0');
  }
  const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
  const std::size_t first = mantissa.find_first_of("123456789");
  long long place = static_cast<long long>(point) - static_cast<long long>(first);
  place += exponent_negative ? -exponent : exponent;
  const double value = place > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return negative ? -value : value;
}

class JsonReader {
 public:
  JsonReader(std::string_view text, int max_depth) : text_(text), max_depth_(max_depth) {}

  Result<JsonValue> read_document() {
    ASSIGN_OR_RETURN(JsonValue value, read_value(0));
    skip_space();
    if (pos_ != text_.size()) return fail("text after the end of the value");
    return value;
  }

 private:
  Error fail(std::string_view what) const {
    return make_error(ErrorCode::kInvalidArgument, "invalid JSON at byte {}: {}", pos_, what);
  }

  char peek() const { return pos_ < text_.size() ? text_[pos_] : '\0'; }

  bool take(std::string_view word) {
    if (text_.substr(pos_, word.size()) != word) return false;
    pos_ += word.size();
    return true;
  }

  void skip_space() {
    while (pos_ < text_.size() &&
           std::string_view(" \t\n\r").find(text_[pos_]) != std::string_view::npos) {
      ++pos_;
    }
  }

  Result<JsonValue> read_value(int depth) {
    skip_space();
    if (pos_ >= text_.size()) return fail("a value is missing");
    if (depth > max_depth_) return fail("nested too deeply");
    const char c = peek();
    if (c == '{') return read_object(depth);
    if (c == '[') return read_array(depth);
    if (c == '"') {
      ASSIGN_OR_RETURN(std::string text, read_string());
      return JsonValue(std::move(text));
    }
    return read_scalar();
  }

  Result<JsonValue> read_scalar() {
    if (take("null")) return JsonValue();
    if (take("true")) return JsonValue(true);
    if (take("false")) return JsonValue(false);
    if (take("NaN")) return JsonValue(std::numeric_limits<double>::quiet_NaN());
    if (take("Infinity")) return JsonValue(std::numeric_limits<double>::infinity());
    if (take("-Infinity")) return JsonValue(-std::numeric_limits<double>::infinity());
    if (peek() == '-' || is_digit(peek())) return read_number();
    return fail("not a value");
  }

  Result<JsonValue> read_number() {
    const std::size_t start = pos_;
    if (peek() == '-') ++pos_;
    if (!is_digit(peek())) return fail("a digit is missing");
    if (peek() == '0') {
      ++pos_;
    } else {
      skip_digits();
    }
    bool is_float = false;
    if (peek() == '.') {
      ++pos_;
      if (!skip_digits()) return fail("a digit is missing");
      is_float = true;
    }
    if (peek() == 'e' || peek() == 'E') {
      ++pos_;
      if (peek() == '+' || peek() == '-') ++pos_;
      if (!skip_digits()) return fail("a digit is missing");
      is_float = true;
    }
    const std::string_view token = text_.substr(start, pos_ - start);
    if (!is_float) return JsonValue(JsonInteger{std::string(token == "-0" ? "0" : token)});
    double value = 0;
    const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
    return JsonValue(error == std::errc() ? value : saturated(token));
  }

  bool skip_digits() {
    const std::size_t start = pos_;
    while (is_digit(peek())) ++pos_;
    return pos_ > start;
  }

  // Requires: peek() == '"'.
  Result<std::string> read_string() {
    ++pos_;
    std::string out;
    while (pos_ < text_.size()) {
      const char c = text_[pos_];
      if (c == '"') {
        ++pos_;
        return out;
      }
      if (c == '\\') {
        RETURN_IF_ERROR(read_escape(out));
        continue;
      }
      if (static_cast<unsigned char>(c) < 0x20) return fail("a control character in a string");
      const Utf8Step character = utf8_step(text_.substr(pos_));
      if (character.state != Utf8State::kValid) return fail("invalid UTF-8");
      out.append(text_, pos_, character.num_bytes);
      pos_ += character.num_bytes;
    }
    return fail("a string without end");
  }

  // Requires: peek() == '\\'.
  Status read_escape(std::string& out) {
    constexpr std::string_view kLetters = "\"\\/bfnrt";
    constexpr std::string_view kMeaning = "\"\\/\b\f\n\r\t";
    ++pos_;
    if (peek() != 'u') {
      const std::size_t letter =
          pos_ < text_.size() ? kLetters.find(peek()) : std::string_view::npos;
      if (letter == std::string_view::npos) return fail("unknown escape");
      out += kMeaning[letter];
      ++pos_;
      return {};
    }
    std::optional<unsigned> code = read_hex4();
    if (code && *code >= 0xD800 && *code <= 0xDBFF && text_.substr(pos_, 2) == "\\u") {
      ++pos_;
      const std::optional<unsigned> low = read_hex4();
      const bool pairs = low && *low >= 0xDC00 && *low <= 0xDFFF;
      code = pairs ? std::optional(0x10000u + ((*code - 0xD800u) << 10) + (*low - 0xDC00u))
                   : std::nullopt;
    }
    if (!code || (*code >= 0xD800 && *code <= 0xDFFF)) return fail("bad \\u escape");
    append_utf8(out, *code);
    return {};
  }

  // Requires: peek() == 'u'.
  std::optional<unsigned> read_hex4() {
    if (text_.size() - pos_ < 5) return std::nullopt;
    unsigned code = 0;
    const char* first = text_.data() + pos_ + 1;
    const auto [end, error] = std::from_chars(first, first + 4, code, 16);
    if (error != std::errc() || end != first + 4) return std::nullopt;
    pos_ += 5;
    return code;
  }

  Result<JsonValue> read_array(int depth) {
    ++pos_;
    JsonArray array;
    skip_space();
    if (take("]")) return JsonValue(std::move(array));
    while (true) {
      ASSIGN_OR_RETURN(JsonValue value, read_value(depth + 1));
      array.push_back(std::move(value));
      skip_space();
      if (take("]")) return JsonValue(std::move(array));
      if (!take(",")) return fail("expected ',' or ']'");
    }
  }

  Result<JsonValue> read_object(int depth) {
    ++pos_;
    JsonMembers members;
    std::unordered_map<std::string, std::size_t> index_of;
    skip_space();
    if (take("}")) return JsonValue(std::move(members));
    while (true) {
      skip_space();
      if (peek() != '"') return fail("expected a key");
      ASSIGN_OR_RETURN(std::string key, read_string());
      skip_space();
      if (!take(":")) return fail("expected ':'");
      ASSIGN_OR_RETURN(JsonValue value, read_value(depth + 1));
      const auto [place, is_new] = index_of.try_emplace(key, members.size());
      if (is_new) {
        members.emplace_back(std::move(key), std::move(value));
      } else {
        members[place->second].second = std::move(value);
      }
      skip_space();
      if (take("}")) return JsonValue(std::move(members));
      if (!take(",")) return fail("expected ',' or '}'");
    }
  }

  std::string_view text_;
  int max_depth_;
  std::size_t pos_ = 0;
};

}  // namespace

Result<JsonValue> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return make_error(ErrorCode::kInvalidArgument, "JSON text of {} bytes; at most {} are accepted",
                      text.size(), limits.max_bytes);
  }
  return JsonReader(text, limits.max_depth).read_document();
}

}  // namespace stoker
