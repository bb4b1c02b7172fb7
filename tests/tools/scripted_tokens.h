// A token source that says what a test wrote down.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/text/tokenizer.h"
#include "tools/token_source.h"

namespace stoker::test {

// Each answer is a text; its tokens come one by one, then EOS. Keeps the common prefix as Session
// does.
class ScriptedTokens final : public tools::TokenSource {
 public:
  explicit ScriptedTokens(const Tokenizer& tokenizer, int context_tokens = 4096)
      : tokenizer_(tokenizer), context_tokens_(context_tokens) {}

  void add_answer(const std::string& text) { answers_.push_back({text, std::nullopt}); }
  // The answer ends with `error` after its text.
  void add_failure(const std::string& text, Error error) {
    answers_.push_back({text, std::move(error)});
  }
  const std::vector<std::string>& prompts() const { return prompts_; }

  void submit(std::span<const TokenId> prompt) override {
    const auto common = std::mismatch(prompt.begin(), prompt.end(), tokens_.begin(), tokens_.end());
    cached_ = std::min<int>(static_cast<int>(common.first - prompt.begin()),
                            static_cast<int>(prompt.size()) - 1);
    tokens_.assign(prompt.begin(), prompt.end());
    prompts_.push_back(tokenizer_.decode(prompt));
    CHECK(!answers_.empty(), "no answer for: {}", prompts_.back());
    left_ = tokenizer_.encode(answers_.front().text);
    failure_ = answers_.front().failure;
    answers_.pop_front();
    place_ = 0;
  }
  Result<TokenId> next(const CancelToken* cancel, const ProgressFn& progress) override {
    if (cancel != nullptr && cancel->cancelled()) return Error(ErrorCode::kCancelled, "cancelled");
    if (progress) progress(1, 1);
    if (place_ == left_.size() && failure_) return *failure_;
    const TokenId token = place_ < left_.size() ? left_[place_++] : *tokenizer_.eos_id();
    tokens_.push_back(token);
    return token;
  }
  int num_cached() const override { return cached_; }
  int context_tokens() const override { return context_tokens_; }

 private:
  struct Answer {
    std::string text;
    std::optional<Error> failure;
  };
  const Tokenizer& tokenizer_;
  int context_tokens_;
  std::deque<Answer> answers_;
  std::vector<std::string> prompts_;
  std::vector<TokenId> tokens_, left_;
  std::optional<Error> failure_;
  std::size_t place_ = 0;
  int cached_ = 0;
};

}  // namespace stoker::test
