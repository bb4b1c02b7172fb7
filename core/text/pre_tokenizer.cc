#include "core/text/pre_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/text/split_pattern.h"
#include "core/text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace stoker {
namespace {

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};

using CodePtr = std::unique_ptr<pcre2_code, Freer<&pcre2_code_free>>;
using CompileContextPtr =
    std::unique_ptr<pcre2_compile_context, Freer<&pcre2_compile_context_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Freer<&pcre2_match_context_free>>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, Freer<&pcre2_match_data_free>>;
using JitStackPtr = std::unique_ptr<pcre2_jit_stack, Freer<&pcre2_jit_stack_free>>;

constexpr std::size_t kMaxPatternBytes = 1 << 16;
constexpr std::size_t kJitStackStart = std::size_t{64} << 10;
constexpr std::size_t kJitStackMax = std::size_t{16} << 20;
constexpr std::uint32_t kHeapLimitKib = 64 << 10;  // of the interpreter

// The interpreter counts a step for each character it gives back, so a run of spaces as long as the
// piece takes some steps per byte. What takes many more is running away.
std::uint32_t match_limit(std::size_t num_bytes) {
  constexpr std::uint64_t kBase = 1'000'000, kPerByte = 32, kMax = 0xFFFFFFFF;
  return static_cast<std::uint32_t>(std::min(kMax, kBase + kPerByte * num_bytes));
}

struct Match {
  std::size_t begin, end;
};

}  // namespace

class PreTokenizer::Scratch {
 public:
  Scratch()
      : data_(pcre2_match_data_create(1, nullptr)), context_(pcre2_match_context_create(nullptr)) {
    CHECK(data_ != nullptr && context_ != nullptr, "no memory for matching");
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
  }

  // First match at or after `from`. Empty: none, or given up.
  std::optional<Match> find(const pcre2_code* code, std::string_view text, std::size_t from) {
    set_limit_for(text.size());
    int rc = match(code, text, from, PCRE2_NO_UTF_CHECK);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && jit_stack_ == nullptr) {
      // The default, 32 KiB of the thread's own stack, is enough for patterns without nested
      // repeats.
      jit_stack_.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr));
      pcre2_jit_stack_assign(context_.get(), nullptr, jit_stack_.get());
      rc = match(code, text, from, PCRE2_NO_UTF_CHECK);
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = match(code, text, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    }
    if (rc < 0) return std::nullopt;
    const std::size_t* ovector = pcre2_get_ovector_pointer(data_.get());
    return Match{ovector[0], ovector[1]};
  }

 private:
  int match(const pcre2_code* code, std::string_view text, std::size_t from,
            std::uint32_t options) {
    return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, options,
                       data_.get(), context_.get());
  }

  void set_limit_for(std::size_t num_bytes) {
    if (num_bytes == limit_is_for_) return;
    limit_is_for_ = num_bytes;
    pcre2_set_match_limit(context_.get(), match_limit(num_bytes));
  }

  MatchDataPtr data_;
  JitStackPtr jit_stack_;
  MatchContextPtr context_;
  std::size_t limit_is_for_ = static_cast<std::size_t>(-1);
};

class PreTokenizer::Pattern {
 public:
  static Result<Pattern> compile(const std::string& regex, Engine engine) {
    if (regex.size() > kMaxPatternBytes) {
      return make_error(ErrorCode::kUnsupported, "{} bytes, the limit is {}", regex.size(),
                        kMaxPatternBytes);
    }
    ASSIGN_OR_RETURN(const std::string pattern, to_pcre2_pattern(regex));
    const CompileContextPtr context(pcre2_compile_context_create(nullptr));
    CHECK(context != nullptr, "no memory for compiling");
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    std::size_t offset = 0;
    CodePtr code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                               PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                               context.get()));
    if (code == nullptr) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(error, message, sizeof(message));
      return make_error(ErrorCode::kUnsupported, "PCRE2 refuses the pattern: {}",
                        reinterpret_cast<const char*>(message));
    }
    const bool jit =
        engine == Engine::kJit && pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) == 0;
    return Pattern(std::move(code), jit ? Engine::kJit : Engine::kInterpreter);
  }

  const pcre2_code* code() const { return code_.get(); }
  Engine engine() const { return engine_; }

 private:
  Pattern(CodePtr code, Engine engine) : code_(std::move(code)), engine_(engine) {}

  CodePtr code_;
  Engine engine_;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

Result<PreTokenizer> PreTokenizer::create(const std::vector<std::string>& patterns, Engine engine) {
  PreTokenizer pre_tokenizer;
  pre_tokenizer.engine_ = engine;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    ASSIGN_OR_RETURN(Pattern pattern, Pattern::compile(patterns[i], engine),
                     "pre_tokenizer.pretokenizers[{}].pattern.Regex", i);
    if (pattern.engine() == Engine::kInterpreter) pre_tokenizer.engine_ = Engine::kInterpreter;
    pre_tokenizer.patterns_.push_back(std::move(pattern));
  }
  return pre_tokenizer;
}

void PreTokenizer::split(std::string_view text, const Sink& sink) const {
  if (text.empty()) return;
  Scratch scratch;
  split_from(0, text, scratch, sink);
}

void PreTokenizer::split_from(std::size_t stage, std::string_view text, Scratch& scratch,
                              const Sink& sink) const {
  if (text.empty()) return;
  if (stage == patterns_.size()) return sink(text);
  const auto next_stage = [&](std::size_t begin, std::size_t end) {
    split_from(stage + 1, text.substr(begin, end - begin), scratch, sink);
  };
  std::size_t done = 0;  // everything before has been passed on
  std::size_t from = 0;
  while (from < text.size()) {
    const std::optional<Match> match = scratch.find(patterns_[stage].code(), text, from);
    if (!match) break;
    next_stage(done, match->begin);
    next_stage(match->begin, match->end);
    done = match->end;
    // An empty match cuts, and the search goes on behind the next character.
    const bool empty = match->begin == match->end;
    if (empty && done == text.size()) break;
    from = empty ? done + utf8_step(text.substr(done)).num_bytes : done;
  }
  next_stage(done, text.size());
}

}  // namespace stoker
