// Runner: the driver thread's object. Owns what changes while a model runs: KV pool, expert
// residency, passes with their workspaces. Advances forward passes layer by layer and turns
// sessions into steps. Not thread-safe.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/base/cancel.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/interface/expert_provider.h"
#include "core/runtime/engine.h"
#include "core/runtime/forward.h"
#include "core/runtime/kv_pool.h"
#include "core/runtime/step.h"

namespace stoker {

class Session;

struct RunnerOptions {
  int context_tokens = 4096;    // KV pages are reserved for this many positions, over all sessions
  int prefill_rows = 512;       // rows of a prefill step at most: the activation budget
  int decode_rows = 16;         // rows of a decode-only step at most
  int prefill_logit_rows = 16;  // rows of one step whose logits may be wanted
};

// A pass lent by the runner; goes back when destroyed.
struct ReturnForward {
  Runner* runner = nullptr;
  void operator()(Forward* forward) const;
};
using ForwardPtr = std::unique_ptr<Forward, ReturnForward>;

class Runner {
 public:
  // Bytes of the workspaces that create() makes.
  static WorkspaceBytes workspace_bytes_needed(const ModelConfig& config, DType activations,
                                               RunnerOptions options);
  // The largest steps that it plans for.
  static WorkspaceLimits limits_needed(const RunnerOptions& options);
  static Result<std::unique_ptr<Runner>> create(std::shared_ptr<const Engine> engine,
                                                std::unique_ptr<ExpertProvider> experts,
                                                RunnerOptions options);
  ~Runner();

  const Engine& engine() const { return *engine_; }
  const RunnerOptions& options() const { return options_; }
  KvPool& kv_pool() { return *kv_pool_; }
  ExpertProvider& experts() { return *experts_; }
  // Reserved beside the weights: KV pool and workspaces.
  std::int64_t kv_bytes() const { return kv_pool_->bytes(); }
  std::int64_t workspace_bytes() const;
  const Clock& clock() const { return clock_; }

  // Over all layers, since the runner was made.
  LayerCounters expert_counters() const;
  // Hooks of every pass whose batch brings none; null: none.
  void set_hooks(StepHooks* hooks) { hooks_ = hooks; }
  // Told of every step; null: nobody. Of passes that overlap, the one that ends first is charged
  // with what both did until then.
  void set_listener(StepListener* listener) { listener_ = listener; }

  // Starts a pass; advance it with run_layer(). Passes of disjoint sequences may be alive at once.
  Result<ForwardPtr> begin(const StepBatch& batch);
  // Starts and runs a pass to its end.
  Result<ForwardPtr> run(const StepBatch& batch);

  // One step for every session that has tokens to feed: a chunk of prompt, or its last sampled
  // token. Sessions whose tokens are all in get their next token sampled. On error every session is
  // as it was.
  Status step(std::span<Session* const> sessions, const CancelToken* cancel = nullptr);

  // Waits until `event` is done. kCancelled when the token fires first; enqueued work is then still
  // running.
  Status wait(Backend& backend, Event event, const CancelToken* cancel);
  // Called while no expert is runnable: waits for one a moment.
  Status idle(const CancelToken* cancel);
  // Keeps a pass's set of experts until what `backend` was given so far has read them. Whoever
  // waits for anything meanwhile releases it when that is so: what is read and copied ahead begins
  // then. The plan behind the set stays as it is until release_kept().
  void keep(ExpertSetPtr set, Backend& backend);
  // Waits until it is released: before the next demand of any pass.
  Status release_kept(const CancelToken* cancel);
  // The same where nothing is enqueued any more, and where no step goes on.
  void drop_kept() { kept_.set.reset(); }
  void finish_kept();
  // Called by a pass that has ended well.
  void on_finished(const Forward& forward);

 private:
  friend struct ReturnForward;
  Runner(std::shared_ptr<const Engine> engine, std::unique_ptr<ExpertProvider> experts,
         RunnerOptions options);
  Status add_pass(int num_rows);
  Result<Forward*> lend_pass(int num_rows, int num_logit_rows);

  std::shared_ptr<const Engine> engine_;
  std::unique_ptr<ExpertProvider> experts_;
  RunnerOptions options_;
  std::unique_ptr<KvPool> kv_pool_;
  struct Pass {
    std::unique_ptr<Forward> forward;
    WorkspaceLimits limits;
    std::int64_t bytes = 0;
    bool lent = false;
  };
  std::vector<Pass> passes_;
  struct Kept {
    ExpertSetPtr set;  // null: none is kept
    Backend* backend = nullptr;
    Event read;  // by what was enqueued
  };
  void release_if_read();
  Kept kept_;
  SteadyClock clock_;
  StepHooks* hooks_ = nullptr;
  StepListener* listener_ = nullptr;
  std::vector<int> moe_layers_;
  std::vector<LayerCounters> counted_, step_counters_;  // by entry of moe_layers_
  // step() builds its batch here.
  std::vector<TokenId> tokens_;
  std::vector<Segment> segments_;
  std::vector<Session*> fed_;
};

}  // namespace stoker
