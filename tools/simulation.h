// Replays a routing trace through the objects that the engine runs (ExpertManager with its cache,
// policy and prefetcher), over drives and computing that are numbers: docs/simulation.md says what
// is modelled and what is not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_provider.h"
#include "core/model/model_config.h"
#include "core/runtime/step.h"
#include "core/tensor/quant_view.h"
#include "prefetch/expert_manager.h"
#include "prefetch/modelled_reader.h"
#include "prefetch/prefetcher.h"
#include "tools/routing_trace.h"

namespace stoker::tools {

// What computing costs, in microseconds.
struct ComputeCosts {
  double step_us = 0.0;        // once in a step: dense layers, head, sampling
  double head_us = 0.0;        // of step_us: what follows the last layer
  double layer_us = 0.0;       // a MoE layer before its experts are demanded: attention, router
  double shared_us = 0.0;      // and after that, while the drive works: the shared expert
  double look_ahead_us = 0.0;  // the gates of the next layers, where guesses are wanted
  double expert_us = 0.0;      // one expert that is there
  double call_us = 0.0;        // each time that parts of experts are given out, on top
  // What each further row of a step adds, as a share of the above but call_us: the weights have
  // been read for the first.
  double row_share = 1.0 / 6.0;

  // Of a step that decodes one row, without waiting.
  double token_us(int num_layers, int top_k) const;
};

// `costs` scaled so that a decoded token computes as long as it did in a run whose --stats file is
// `json`: the median over its steps of one row of the time that was not waited.
Result<ComputeCosts> calibrated(const ComputeCosts& costs, const ModelConfig& config,
                                std::string_view json);

// Costs of a machine that reads weights at `bytes_per_second` and is bound by it.
ComputeCosts costs_at_bandwidth(const ModelConfig& config, QuantSpec experts,
                                double bytes_per_second);

// Whose guesses the prefetcher gets.
enum class Predictor : std::uint8_t {
  kGate,      // those of the trace
  kPrevious,  // what the token before chose in that layer
  kPerfect,   // what will be chosen
};
// The trace with its guesses replaced; unchanged for kGate.
RoutingTrace with_predictor(RoutingTrace trace, Predictor predictor);

struct SimulationOptions {
  int num_slots = 0;
  std::string policy{ExpertManagerOptions().policy};
  PrefetchOptions prefetch;
  std::vector<ModelledDrive> drives = {{}};
  ComputeCosts costs;
  std::int64_t skipped_tokens = 0;  // the first ones are run and left out of the results
};

// The steps of one kind, added up.
struct SimulatedSteps {
  std::int64_t num_steps = 0, num_tokens = 0;
  std::int64_t us = 0;
  LayerCounters counters;
  // Bounds for any cache of that size, belady.h: fewest experts read, and least time with a drive
  // that knows the future.
  std::int64_t fewest_reads = 0;
  double least_us = 0.0;

  // Experts demanded, once per layer and step.
  std::int64_t num_uses() const { return counters.hit + counters.late + counters.miss; }
};

struct Simulated {
  SimulatedSteps prefill, decode;  // a step with a prefill row is one of prefill
};

// `trace` has been checked against `config`. `listener` (may be null) is told of every step, as a
// runner would. Refused: too few slots.
Result<Simulated> simulate(const ModelConfig& config, QuantSpec experts, const RoutingTrace& trace,
                           const SimulationOptions& options, StepListener* listener = nullptr);

}  // namespace stoker::tools
