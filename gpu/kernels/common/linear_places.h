// How linears of few rows are cut into blocks (linear_few.cu, linear_stream.cu), and where those of
// several matrices with the same inputs stand in one launch, as plain index arithmetic that tests
// follow on the host.
//
// All work is in pairs of tiles, 32 outputs, and segments of 1024 columns of them. linear_few.cu: a
// block takes some segments of one pair, as many for all matrices of a launch. In its grid, pairs
// of matrices stand side by side in x; y counts the blocks that share a pair.
//
// linear_stream.cu: the segments of all pairs of all matrices stand in a row, one pair's after
// another's, and every block takes an equal share.
#pragma once

#include <climits>
#include <cstdint>

#include "gpu/kernels/common/expert_places.h"
#include "gpu/launch.h"
#include "quant/tile16.h"

namespace stoker::gpu {

inline constexpr int kLinearOutputs = kPairRows;
inline constexpr int kLinearGroup = 128;  // columns of a scale
inline constexpr int kLinearSegmentGroups = 8;
inline constexpr int kLinearSegmentCols = kLinearSegmentGroups * kLinearGroup;

constexpr std::int32_t linear_pairs(std::int64_t rows) {
  return static_cast<std::int32_t>((rows + kLinearOutputs - 1) / kLinearOutputs);
}
constexpr std::int32_t linear_segments(std::int64_t cols) {
  return static_cast<std::int32_t>((cols + kLinearSegmentCols - 1) / kLinearSegmentCols);
}

// Which matrices are streamed: so large that a block's share is much more than what it has on its
// way. Depends on the matrix alone, as its rows' bits do.
inline constexpr std::int64_t kLeastStreamedBytes = std::int64_t{48} << 20;
constexpr bool streams_linear(const QuantView& weight) {
  const quant::Tile16 tile{weight.rows, weight.cols, weight.spec};
  return weight.spec.format == QuantFormat::kF8E4m3B128 &&
         tile.payload_bytes() >= kLeastStreamedBytes;
}

// Pairs in blocks.
struct LinearCut {
  std::int32_t num_segments = 0;  // of a pair
  std::int32_t segments_per_block = 0;
  std::int32_t num_shares = 0;  // blocks of a pair; more than one add their sums through memory
};

// What is soonest done. In halves of the time that a segment takes a block: its start and end cost
// one, sums through memory two, and blocks beyond `at_once`, those that a device runs side by side,
// follow as others end. `num_pairs`: of all matrices; `leaves_room`: for blocks of a launch beside.
constexpr LinearCut cut_linear(std::int64_t num_pairs, std::int32_t num_segments,
                               std::int64_t at_once, bool leaves_room) {
  LinearCut best;
  std::int64_t best_cost = 0;
  for (std::int32_t count = num_segments; count > 0; --count) {
    const LinearCut cut{num_segments, count, (num_segments + count - 1) / count};
    const std::int64_t blocks = num_pairs * cut.num_shares;
    if (leaves_room && blocks > at_once && count < num_segments) break;
    const std::int64_t cost = (blocks > at_once ? blocks : at_once) * (2 * count + 1) +
                              (cut.num_shares > 1 ? 2 * at_once : 0);
    if (count == num_segments || cost < best_cost) {
      best = cut;
      best_cost = cost;
    }
  }
  return best;
}

// F32 in that memory that a matrix may take, however its pairs are cut.
constexpr std::int64_t linear_partials(std::int64_t num_pairs, std::int64_t num_segments,
                                       std::int64_t num_rows) {
  return num_segments == 1 ? 0 : num_segments * num_rows * num_pairs * kLinearOutputs;
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

// The shares of a launch that streams. A pair is in one share, or cut: then the sums of its
// segments go through memory, at the place of the first block that has some of it, of which it is
// the last pair.
struct LinearStream {
  std::int32_t num_pairs = 0;  // of all matrices
  std::int32_t num_segments = 0;
  std::int32_t num_blocks = 0;  // no more than there are segments in all

  // Where a block's share begins and the one before ends, in segments of all pairs.
  STOKER_HD constexpr int begin(int block) const {
    return share_begin(block, num_blocks, num_pairs * num_segments);
  }
  // How many segments of a pair a share has.
  STOKER_HD constexpr int segments_of(int pair, int share_begin, int share_end) const {
    const int pair_begin = pair * num_segments, pair_end = pair_begin + num_segments;
    const int from = share_begin > pair_begin ? share_begin : pair_begin;
    const int to = share_end < pair_end ? share_end : pair_end;
    return to > from ? to - from : 0;
  }
  // The first block that has some of a pair; `block` has some.
  STOKER_HD constexpr int first_block(int block, int pair) const {
    while (begin(block) > pair * num_segments) --block;
    return block;
  }

  // In that memory: the sum of a segment for the first output of a cut pair, F32; and how many
  // segments of it a row has.
  STOKER_HD constexpr std::int64_t partial(int num_rows, int segment, int row, int block) const {
    return linear_partial(num_blocks, num_rows, segment, row, block);
  }
  STOKER_HD constexpr int counter(int num_rows, int row, int block) const {
    return block * num_rows + row;
  }
  constexpr std::int64_t num_partials(std::int64_t num_rows) const {
    return num_segments * num_rows * num_blocks * kLinearOutputs;
  }
  constexpr std::int64_t num_counters(std::int64_t num_rows) const { return num_blocks * num_rows; }
};

}  // namespace stoker::gpu
