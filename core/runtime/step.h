// A step is a batch of segments; a segment is some rows of one sequence, for one purpose.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/cancel.h"
#include "core/base/ids.h"
#include "core/interface/backend.h"
#include "core/runtime/kv_pool.h"

namespace stoker {

// Which rows of a segment give logits.
enum class Logits : std::uint8_t { kNone, kLast, kAll };

struct Segment {
  KvSequence* kv = nullptr;
  int row_begin = 0;
  int num_rows = 0;
  Purpose purpose = Purpose::kDecode;
  Logits want = Logits::kLast;
};

struct StepBatch;

// Sees and replaces the choices of a step: recording, and runs forced from a file. Spans returned
// stay valid until the step ends. Called by the driver thread. Passes that overlap need hooks of
// their own.
class StepHooks {
 public:
  virtual ~StepHooks() = default;

  // Around everything else; a step that fails has no end.
  virtual void on_begin(const StepBatch& /*batch*/) {}
  virtual void on_end() {}

  // Experts to take in `layer`, [T, top_k], instead of the router's; empty: the router chooses.
  virtual std::span<const std::int32_t> forced_experts(int /*layer*/) { return {}; }
  // Their weights, [T, top_k]; empty: computed from the router's scores.
  virtual std::span<const float> forced_weights(int /*layer*/) { return {}; }
  virtual void on_routes(int /*layer*/, const RouteMailbox& /*routes*/) {}

  // Experts per row that the look-ahead gate ranks for on_look_ahead(); 0: not wanted. At most
  // kMaxRankedGuesses.
  virtual int num_ranked_wanted() { return 0; }
  // What the look-ahead gate says of a later layer.
  virtual void on_look_ahead(const LookAhead& /*guesses*/) {}
  // What the provider is told of `layer` instead, the gate having been computed all the same;
  // num_ranked 0: what the gate said.
  virtual LookAhead forced_look_ahead(int /*layer*/, int /*lead*/) { return {}; }

  // Positions, ascending, that `row` attends to in `layer`; empty: the indexer chooses.
  virtual std::span<const std::int32_t> forced_selection(int /*layer*/, int /*row*/) { return {}; }
  virtual bool wants_selection(int /*layer*/) { return false; }
  // counts[t] = -1: row t attends to every visible position. positions [T, top_k].
  virtual void on_selection(int /*layer*/, std::span<const std::int32_t> /*counts*/,
                            std::span<const std::int32_t> /*positions*/) {}
};

struct StepBatch {
  std::span<const TokenId> tokens;    // [T]
  std::span<const Segment> segments;  // cover [0, T) in order
  StepHooks* hooks = nullptr;
  const CancelToken* cancel = nullptr;  // ends the step with kCancelled
};

// What a finished step did and cost.
struct StepRecord {
  int num_rows = 0;
  int num_decode_rows = 0;
  std::int64_t us = 0;                        // from its start to its logits
  std::span<const int> layers{};              // MoE layers, ascending
  std::span<const LayerCounters> counters{};  // of this step, one per entry of `layers`
};

// Told after every step that ends well. Called by the driver thread.
class StepListener {
 public:
  virtual ~StepListener() = default;
  virtual void on_step(const StepRecord& record) = 0;
};

// Rows of F32 in host memory.
struct RowsView {
  const float* data = nullptr;
  int num_rows = 0;
  int num_cols = 0;
  std::span<const float> row(int index) const {
    CHECK(index >= 0 && index < num_rows, "row {} of {}", index, num_rows);
    return {data + static_cast<std::int64_t>(index) * num_cols, static_cast<std::size_t>(num_cols)};
  }
};

}  // namespace stoker
