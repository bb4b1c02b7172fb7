// One forward pass over a batch. Several may be alive; the runner advances them layer by layer, so
// that decode of one session goes on between the layers of another's prefill.
#pragma once

#include <memory>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/runtime/engine.h"
#include "core/runtime/expert_sites.h"
#include "core/runtime/step.h"
#include "core/runtime/workspace.h"

namespace stoker {

class Runner;

class Forward {
 public:
  // Bytes that create() allocates.
  static WorkspaceBytes bytes_needed(const ModelConfig& config, DType activations,
                                     WorkspaceLimits limits);
  // Made by the runner, which keeps and reuses passes with their workspaces: starting one allocates
  // nothing.
  static Result<std::unique_ptr<Forward>> create(Runner& runner, WorkspaceLimits limits);
  ~Forward();
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  // Checks the batch, reserves its KV positions, takes the embedding. On error nothing has changed.
  // The batch's tokens, hooks and cancel token stay valid until the pass ends; a sequence takes
  // part in one pass at a time.
  Status start(Runner& runner, const StepBatch& batch);
  // Gives the reservations of an unfinished pass back: its sequences are as they were.
  void release();

  bool done() const { return next_layer_ == kFinished; }
  // Runs the next layer; after the last one also the head, and commits the new positions. After an
  // error the pass is over and its sequences are as they were.
  Status run_layer(Runner& runner);

  // When done: logits of the wanted rows in ascending row order, and the state after the final norm
  // [T, hidden_size].
  RowsView logits() const;
  TensorView hidden() const;
  // Wanted rows, ascending; row i of logits() belongs to row logit_rows()[i] of the batch.
  std::span<const std::int32_t> logit_rows() const { return logit_rows_; }
  int max_rows() const { return limits_.max_rows; }
  int num_rows() const { return step_.num_rows(); }
  int num_decode_rows() const;
  std::int64_t started_us() const { return started_us_; }  // by the runner's clock

 private:
  static constexpr int kFinished = -1;

  Forward(Runner& runner, WorkspaceLimits limits);
  Status describe(const StepBatch& batch);
  Status reserve();
  Status run_one_layer(Runner& runner, const LayerSpec& spec, const LayerWeights& weights);
  Status dense_part(Runner& runner, const LayerSpec& spec, const LayerWeights& weights);
  PartScope part(int num_ranked, bool is_forced, bool possible);
  std::span<const std::int32_t> forced_experts(const LayerSpec& spec);
  bool hooks_select(const LayerSpec& spec) const;
  Status attention(Runner& runner, const LayerSpec& spec, const LayerWeights& weights);
  IndexInputParams index_inputs(Runner& runner, const IndexerWeights& indexer) const;
  Status select(Runner& runner, const LayerSpec& spec);
  Status apply_selection_hooks(Runner& runner, const LayerSpec& spec);
  Status mixture_of_experts(Runner& runner, const LayerSpec& spec, const LayerWeights& weights);
  void route(const LayerSpec& spec, const LayerWeights& weights,
             std::span<const std::int32_t> forced);
  Status take_routes(Runner& runner, const LayerSpec& spec);
  void shared_expert(const LayerSpec& spec, const LayerWeights& weights, int num_ranked);
  RouteMailbox mailbox(const LayerSpec& spec) const;
  int num_ranked_wanted(Runner& runner) const;
  void look_ahead(int num_ranked, const TensorView& added, const TensorView& state);
  void tell_guesses(Runner& runner);
  Status tell_all_guesses(Runner& runner);
  Status run_experts(Runner& runner, ExpertSet& set);
  Status finish(Runner& runner);
  void move_on();
  void finish_backends();

  // A workspace tensor cut to this step's rows.
  TensorView rows(const Tensor& tensor) const {
    return tensor.view().row_slice(0, step_.num_rows());
  }
  int layer() const { return next_layer_ == kFinished ? 0 : next_layer_; }
  Backend& backend() const { return engine_.placement().dense(layer()); }  // of the next layer
  Workspace& workspace() const {                                           // its activations
    return *workspaces_[static_cast<std::size_t>(engine_.placement().dense_index(layer()))];
  }

  const Engine& engine_;
  const Clock& clock_;
  WorkspaceLimits limits_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // by backend; null: it runs no dense part
  std::unique_ptr<HostWorkspace> host_;
  std::unique_ptr<ExpertSites> sites_;
  std::int64_t started_us_ = 0;
  StepHooks* hooks_ = nullptr;
  StepView step_;
  bool has_parts_ = false;
  std::vector<Segment> segments_;
  std::vector<RowRange> ranges_;
  std::vector<SequencePages> sequences_;
  std::vector<std::int32_t> positions_, logit_rows_;
  const CancelToken* cancel_ = nullptr;
  int next_layer_ = kFinished;
  int selecting_layer_ = -1;        // whose selection the layer's workspace holds
  Event routed_;                    // the running layer's routes are in their mailbox
  std::vector<LookAhead> guesses_;  // of the running layer or the one before, not yet told
  Backend* guessing_ = nullptr;     // who writes them
  Event guesses_ready_;
  std::size_t num_reserved_ = 0;  // segments whose KV positions are held and not yet committed
};

}  // namespace stoker
