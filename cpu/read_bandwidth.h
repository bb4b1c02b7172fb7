// How fast this machine's memory can be read: the floor that weight streaming is measured against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/team.h"

namespace stoker {

// Reads all of `memory`, whose size is a multiple of 128, at the pace of the loads; the sum depends
// on every byte.
std::uint64_t read_through(std::span<const std::byte> memory);

// Bytes per second at which all threads of `team` together read `bytes` of memory that no cache
// holds: the median of `rounds` passes. Allocates the memory; 0 if there is not enough.
double measure_read_bandwidth(Team& team, std::int64_t bytes, int rounds);

}  // namespace stoker
