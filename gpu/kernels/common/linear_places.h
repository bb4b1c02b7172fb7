// How linears of few rows are cut into blocks (linear_few.cu), and where those of several matrices
// with the same inputs stand in one grid, as plain index arithmetic that tests follow on the host.
//
// A block takes a pair of tiles, 32 outputs, and some segments of 1024 columns. How a matrix is cut
// depends on nothing beside it. In a grid, pairs of matrices stand side by side in x; y counts the
// blocks that share a pair, up to the most that any of the matrices has.
#pragma once

#include <climits>
#include <cstdint>

#include "gpu/launch.h"
#include "quant/tile16.h"

namespace stoker::gpu {

inline constexpr int kLinearOutputs = 2 * quant::kTileRows;
inline constexpr int kLinearSegmentCols = 1024;

// A matrix in blocks.
struct LinearCut {
  std::int32_t num_pairs = 0;
  std::int32_t num_segments = 0;
  std::int32_t segments_per_block = 0;
  std::int32_t num_shares = 0;  // blocks of a pair; more than one add their sums through memory

  // F32 in that memory, for so many rows of x; counters, one a pair.
  constexpr std::int64_t num_partials(std::int64_t num_rows) const {
    return num_shares == 1 ? 0 : num_segments * num_rows * num_pairs * kLinearOutputs;
  }
  constexpr std::int64_t num_counters() const { return num_shares == 1 ? 0 : num_pairs; }
};

// What is soonest done by waves of blocks, to each of which its start and end cost about as much as
// half a segment. `at_once`: blocks that a device runs side by side.
constexpr LinearCut cut_linear(std::int64_t rows, std::int64_t cols, std::int64_t at_once) {
  const auto num_pairs = static_cast<std::int32_t>((rows + kLinearOutputs - 1) / kLinearOutputs);
  const auto num_segments =
      static_cast<std::int32_t>((cols + kLinearSegmentCols - 1) / kLinearSegmentCols);
  LinearCut best;
  std::int64_t best_cost = 0;
  for (std::int32_t count = num_segments; count > 0; --count) {
    const LinearCut cut{num_pairs, num_segments, count, (num_segments + count - 1) / count};
    const std::int64_t blocks = std::int64_t{num_pairs} * cut.num_shares;
    const std::int64_t cost = (blocks + at_once - 1) / at_once * (2 * count + 1);
    if (count == num_segments || cost < best_cost) {
      best = cut;
      best_cost = cost;
    }
  }
  return best;
}

// Where the pairs of each matrix begin in a grid; INT_MAX for those that are not there.
struct LinearGrid {
  std::int32_t first_pair[kMostLinearsJoined] = {INT_MAX, INT_MAX, INT_MAX, INT_MAX};
};
struct LinearPlace {
  int matrix, pair;
};
STOKER_HD constexpr LinearPlace linear_place(const LinearGrid& grid, int block) {
  int matrix = 0;
  for (int i = 1; i < kMostLinearsJoined; ++i) matrix += block >= grid.first_pair[i] ? 1 : 0;
  return {matrix, block - grid.first_pair[matrix]};
}

// The sum of a segment for the first output of a pair, among a matrix's partial sums.
STOKER_HD constexpr std::int64_t linear_partial(int num_pairs, int num_rows, int segment, int row,
                                                int pair) {
  return ((std::int64_t{segment} * num_rows + row) * num_pairs + pair) * kLinearOutputs;
}

}  // namespace stoker::gpu
