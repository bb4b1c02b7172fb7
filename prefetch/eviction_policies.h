// The eviction policies by name; eviction_policy.h says what each does. For make_eviction_policy().
#pragma once

#include "prefetch/eviction_policy.h"

namespace stoker {

// Keys of slots that go before all that was used, the first to come first. Stamps stay below it and
// exact in a double for as long as a machine runs.
inline constexpr double kColdKey = -1e15;

std::unique_ptr<EvictionPolicy> make_lru_policy(int num_slots);
std::unique_ptr<EvictionPolicy> make_lrfu_policy(ExpertGrid grid, int num_slots);
std::unique_ptr<EvictionPolicy> make_slru_policy(int num_slots);
std::unique_ptr<EvictionPolicy> make_s3fifo_policy(ExpertGrid grid, int num_slots);
std::unique_ptr<EvictionPolicy> make_turns_policy(ExpertGrid grid, int num_slots);

}  // namespace stoker
