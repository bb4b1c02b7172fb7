// What a routing trace is like, in the numbers that are published for trained models
// (docs/simulation.md), so that a generated one can be held to them.
#pragma once

#include <array>
#include <vector>

#include "tools/routing_trace.h"

namespace stoker::tools {

// Fractions of all (layer, expert) pairs at which hit rates are given.
inline constexpr std::array kCachedFractions = {0.05, 0.10, 0.15, 0.20, 0.25, 0.30,
                                                0.35, 0.40, 0.45, 0.50, 0.55, 0.60};

// How good the guesses made for one lead are.
struct GuessStatistics {
  std::vector<double> useful;  // [num_ranked] share of guesses at this rank that were chosen
  // [num_ranked] share of the chosen experts found among the first rank + 1 guesses.
  std::vector<double> recall;
  // Share of the chosen experts that an LRU cache of a tenth of all experts does not hold and the
  // first top_k guesses name. What prefetch can use: the others were there already.
  double recall_on_misses = 0.0;
};

// Averages over layers and tokens. Caches are judged over the second half of the tokens, the first
// fills them.
struct TraceStatistics {
  std::int64_t num_tokens = 0;
  double overlap = 0.0;  // share of a token's experts that the token before chose in that layer
  // Hit rate of one LRU cache over all layers, by cached fraction.
  std::array<double, kCachedFractions.size()> lru_hit{};
  double entropy = 0.0;      // of a layer's use of experts, as a share of that of equal use
  double top_share = 0.0;    // of choices that fall on a layer's four most used experts
  double distinct_75 = 0.0;  // experts of a layer that 75 consecutive tokens touch
  std::array<GuessStatistics, kMaxLead> guesses;  // by lead - 1; empty if the trace has none
  GuessStatistics before_first;  // of the first MoE layer, made before any; empty if there are none
};

TraceStatistics trace_statistics(const RoutingTrace& trace);

// A few lines for people.
std::string statistics_to_text(const TraceStatistics& statistics);

}  // namespace stoker::tools
