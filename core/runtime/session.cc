#include "core/runtime/session.h"

#include <algorithm>

namespace stoker {

Session::Session(Runner& runner, SamplerOptions options)
    : runner_(runner),
      sampler_(std::move(options), runner.engine().config().vocab_size),
      kv_(runner.kv_pool()) {
  tokens_.reserve(static_cast<std::size_t>(runner.options().context_tokens) + 1);
}

void Session::submit(std::span<const TokenId> prompt) {
  CHECK(!prompt.empty(), "an empty prompt");
  const auto [ours, theirs] =
      std::mismatch(tokens_.begin(), tokens_.end(), prompt.begin(), prompt.end());
  const int common = static_cast<int>(ours - tokens_.begin());
  kv_.rewind(std::min({kv_.length(), common, static_cast<int>(prompt.size()) - 1}));
  rewind(static_cast<int>(tokens_.size()) - common);
  for (const TokenId token : prompt.subspan(static_cast<std::size_t>(common))) {
    tokens_.push_back(token);
    if (token >= 0 && token < runner_.engine().config().vocab_size) sampler_.accept(token);
  }
  num_prompt_ = static_cast<int>(tokens_.size());
}

Result<TokenId> Session::next(const CancelToken* cancel, const ProgressFn& progress) {
  CHECK(!pending().empty(), "nothing to feed");
  const int first = kv_.length();
  sampled_.reset();
  while (!sampled_) {
    Session* const self = this;
    RETURN_IF_ERROR(runner_.step({&self, 1}, cancel));
    if (progress) progress(kv_.length() - first, num_prompt_ - first);
  }
  return *sampled_;
}

void Session::rewind(int num_tokens) {
  for (int i = 0; i < num_tokens; ++i) {
    const TokenId token = tokens_.back();
    if (token >= 0 && token < runner_.engine().config().vocab_size) sampler_.forget(token);
    tokens_.pop_back();
  }
  const int length = static_cast<int>(tokens_.size());
  kv_.rewind(std::min(kv_.length(), length));
  num_prompt_ = std::min(num_prompt_, length);
}

void Session::set_sampler(SamplerOptions options) {
  sampler_ = Sampler(std::move(options), runner_.engine().config().vocab_size);
  for (const TokenId token : tokens_) sampler_.accept(token);
}

void Session::sample(std::span<const float> logits) {
  sampled_ = sampler_.sample(logits);
  sampler_.accept(*sampled_);
  tokens_.push_back(*sampled_);
}

}  // namespace stoker
