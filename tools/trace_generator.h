// Makes routing traces that behave like those published for models with 256 experts and a sigmoid
// router, where none of the model itself is at hand. Measurements at full width need them: with
// random weights a router's choices have neither reuse nor anything to foresee.
#pragma once

#include <array>
#include <cstdint>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "tools/routing_trace.h"

namespace stoker::tools {

// An expert's score at a token is the sum of three independent parts; the best top_k within the
// best groups are chosen, as a router does. Defaults: fitted for 8 of 256 experts in 4 of 8 groups
// (docs/simulation.md has the targets and what came out).
struct TraceModel {
  // Shares of the score's variance; the rest is recency, each expert's own, which fades within a
  // few tokens as new parts come in.
  double popularity = 0.017;   // fixed for each expert
  double topic = 0.125;        // drifts slowly and is common to all layers
  double topic_tokens = 55.0;  // until it has faded to 1/e
  double recency_tokens = 2.2;
  // A guess knows everything but what is new in recency, with which it has this correlation (by
  // lead - 1).
  std::array<double, kMaxLead> foreseen = {0.95, 0.925};
};

struct GeneratedTrace {
  int num_tokens = 0;
  int num_prefill = 0;  // of them, the first ones: one prefill step
  int num_ranked = 0;   // guesses at each layer; 0: twice top_k
  std::uint64_t seed = 0;
  TraceModel model{};
};

// The same trace for the same arguments, on every machine. Errors: a model without experts, or with
// more than a trace can name.
Result<RoutingTrace> generate_trace(const ModelConfig& config, const GeneratedTrace& wanted);

}  // namespace stoker::tools
