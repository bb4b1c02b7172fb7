// What no cache and no prefetcher can beat on a given sequence of demands: Belady's optimum.
//
// A demand is the set of experts that one layer of one step needs. All of them must be resident
// while it runs, so none of them may be evicted for another, and nothing bypasses the cache. Who
// goes is the expert that is demanded again the latest; that is optimal for the whole sequence and,
// at the same time, for every prefix of it. Of a demand of more experts than there are slots
// everybody counts who was there before, and any may stay: such a demand runs in waves, and this is
// the least they can cost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/routing_trace.h"

namespace stoker::tools {

// Demands in the order of a run: for every step every MoE layer.
struct DemandSequence {
  int num_ids = 0;                // experts are numbered place * num_experts + expert
  std::vector<std::int32_t> ids;  // distinct within a demand, ascending
  std::vector<std::size_t> ends;  // of each demand in `ids`

  std::int64_t size() const { return std::ssize(ends); }
  std::span<const std::int32_t> demand(std::int64_t index) const {
    const std::size_t begin = index == 0 ? 0 : ends[static_cast<std::size_t>(index) - 1];
    return std::span(ids).subspan(begin, ends[static_cast<std::size_t>(index)] - begin);
  }
  void add(std::span<const std::int32_t> demand);
};

// Of the tokens [first, last). A step's first token is where its demands begin.
DemandSequence demands_of(const RoutingTrace& trace, std::int64_t first, std::int64_t last);

enum class FirstContent : std::uint8_t {
  kEmpty,
  kBest,  // whatever serves best, without being read: a bound for a cache in whatever state
};

// Fewest experts that must be read, by demand, with `num_slots` slots. O(n log n) for n ids.
std::vector<std::int32_t> fewest_reads(const DemandSequence& demands, int num_slots,
                                       FirstContent first);

// Least time, in microseconds, in which any scheme can serve the demands, however it reads ahead: a
// drive that is never idle and knows the future. With reads[i] as above, `read_us` the drive's time
// for one expert and compute_us[i] what the layer of demand i computes in any case:
//
//   max( sum of compute_us,  max over i of (reads[0] + ... + reads[i]) * read_us
//                                          + compute_us[i+1] + ... )
//
// since what the first i demands need must have come before their last expert is computed, and all
// that follows must still be computed then. The room that reading ahead takes is not counted, so
// the bound may lie below what can be reached.
double least_time_us(std::span<const std::int32_t> reads, std::span<const double> compute_us,
                     double read_us);

}  // namespace stoker::tools
