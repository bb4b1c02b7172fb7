// Session: one timeline of tokens, its sampler and its cached positions. Belongs to the runner's
// thread.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "core/base/error.h"
#include "core/runtime/kv_pool.h"
#include "core/runtime/runner.h"
#include "core/runtime/sampler.h"

namespace stoker {

class Session {
 public:
  // Requires valid options (validate()).
  Session(Runner& runner, SamplerOptions options);

  // Makes `prompt` the timeline's content, keeping the cached positions of the longest common
  // prefix. At least its last token is fed again, so that a step gives a next token. `prompt` must
  // not be empty.
  void submit(std::span<const TokenId> prompt);

  // Feeds what is pending, in as many steps as the runner's budget asks for, and returns the
  // sampled token, which is then part of tokens() and pending. `progress` counts prompt tokens. On
  // error the session is as it was before the step that failed.
  Result<TokenId> next(const CancelToken* cancel = nullptr, const ProgressFn& progress = nullptr);

  // Takes the last token back, fed or not.
  void rewind(int num_tokens);
  void set_sampler(SamplerOptions options);

  std::span<const TokenId> tokens() const { return tokens_; }
  int num_cached() const { return kv_.length(); }

 private:
  friend class Runner;
  std::span<const TokenId> pending() const {
    return std::span(tokens_).subspan(static_cast<std::size_t>(kv_.length()));
  }
  // Sampled tokens are fed by decode arithmetic, everything else by prefill.
  Purpose pending_purpose() const {
    return kv_.length() < num_prompt_ ? Purpose::kPrefill : Purpose::kDecode;
  }
  void sample(std::span<const float> logits);

  Runner& runner_;
  Sampler sampler_;
  KvSequence kv_;
  std::vector<TokenId> tokens_;
  int num_prompt_ = 0;  // tokens_[0, num_prompt_) came by submit()
  std::optional<TokenId> sampled_;
};

}  // namespace stoker
