// How fast this machine's memory can be read: the floor that weight streaming is measured against.
#pragma once

#include <cstdint>

#include "core/base/team.h"

namespace stoker {

// Bytes per second at which all threads of `team` together read `bytes` of memory that no cache
// holds: the median of `rounds` passes. Allocates the memory; 0 if there is not enough.
double measure_read_bandwidth(Team& team, std::int64_t bytes, int rounds);

}  // namespace stoker
