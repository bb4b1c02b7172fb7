// Where the tokens of an answer come from: a session of a model, or a script in tests.
#pragma once

#include <span>
#include <utility>

#include "core/base/cancel.h"
#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/base/progress.h"
#include "core/runtime/session.h"

namespace stoker::tools {

// The contracts are Session's.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual void submit(std::span<const TokenId> prompt) = 0;
  virtual Result<TokenId> next(const CancelToken* cancel, const ProgressFn& progress) = 0;
  // Positions of the submitted prompt that need not be computed.
  virtual int num_cached() const = 0;
  // Tokens that prompt and answer may have together.
  virtual int context_tokens() const = 0;
  // What the expert cache has done so far.
  virtual LayerCounters expert_counters() const { return {}; }
  // Whether the model could do with a larger context than was reserved.
  virtual bool context_can_grow() const { return true; }
};

class SessionTokens final : public TokenSource {
 public:
  SessionTokens(Runner& runner, SamplerOptions options)
      : runner_(runner), session_(runner, std::move(options)) {}

  void submit(std::span<const TokenId> prompt) override { session_.submit(prompt); }
  Result<TokenId> next(const CancelToken* cancel, const ProgressFn& progress) override {
    return session_.next(cancel, progress);
  }
  int num_cached() const override { return session_.num_cached(); }
  int context_tokens() const override { return runner_.options().context_tokens; }
  LayerCounters expert_counters() const override { return runner_.expert_counters(); }
  bool context_can_grow() const override {
    return context_tokens() < runner_.engine().config().max_position_embeddings;
  }

 private:
  Runner& runner_;
  Session session_;
};

}  // namespace stoker::tools
