// Keys of latent attention on their way from the cache into shared memory, a tile of a split at a
// time. Rows of an FP8 cache become BF16 there.
#pragma once

#include <cuda_runtime.h>

#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/splits.cuh"
#include "gpu/kernels/common/visible.cuh"

namespace stoker::gpu {

inline constexpr int kLoadWarps = 8;  // of a block
inline constexpr int kLatentChunks = kLatentWidth / kChunk;
inline constexpr unsigned kLatentRowBytes = kLatentWidth * 2;
static_assert(kSplitTile == kLoadWarps * 8);

// Byte offset of a chunk in a tile of rows of `width` values: neighbouring rows are shifted against
// each other, so that eight of them are read without bank conflicts.
__device__ inline unsigned swizzled(int row, int chunk, int width) {
  return static_cast<unsigned>(row * width * 2 + (chunk ^ (row % 8)) * kChunkBytes);
}

static_assert(kFp8LatentRow.bytes % kChunkBytes == 0 && kFp8LatentRow.kept_at % kChunkBytes == 0);
static_assert(kLatentDim == 2 * kWarp * kChunk && kLatentRope <= kWarp * kChunk);

// A chunk of an FP8 row on its way.
struct Fp8Chunk {
  uint2 codes;
  float scale;

  __device__ void load(const unsigned char* row, int chunk, bool valid) {
    codes = reinterpret_cast<const uint2*>(row)[chunk];
    scale =
        reinterpret_cast<const float*>(row + kFp8LatentRow.scales_at)[chunk * kChunk / kKvGroup];
    if (!valid) codes = {}, scale = 0.0f;
  }
  __device__ uint4 widened() const { return widen_codes(codes, scale); }
};

// A lane's share of such a row: chunks `lane`, kWarp + `lane`, and one that is kept.
struct Fp8Share {
  Fp8Chunk low, high;
  uint4 kept;

  // Row `at` of `cache`; zeros where that is negative.
  __device__ void load(const TensorView& cache, int at, int lane) {
    const auto* row = static_cast<const unsigned char*>(cache.data) + max(at, 0) * cache.row_stride;
    low.load(row, lane, at >= 0);
    high.load(row, kWarp + lane, at >= 0);
    kept = {};
    if (at >= 0 && lane < kLatentRope / kChunk) {
      kept = reinterpret_cast<const uint4*>(row + kFp8LatentRow.kept_at)[lane];
    }
  }
};

// Loads the keys of a split tile by tile, eight of each per warp. Their positions and cached rows
// are known to the warp's lanes 0 to 7; -1 behind the end. A tile's positions are asked for three
// tiles ahead and its rows two, and nobody waits. Without arrays: one that is indexed in a loop
// would keep the whole object in memory until that is unrolled, which costs registers.
template <bool kFp8>
class KeyLoader {
 public:
  static constexpr int kWarpKeys = kSplitTile / kLoadWarps, kTurns = kWarpKeys + 1;

  // Keys [begin, end) of what is visible to `row`.
  __device__ KeyLoader(const AttendRowsParams& p, std::int64_t row, const Visible& visible,
                       int begin, int end, const BlockLane& lane)
      : cache_(p.cache.rows),
        pages_(p.step.latent_pages + p.step.latent_first[row]),
        visible_(visible),
        begin_(begin),
        end_(end),
        lane_(lane) {
    found_ = find_row(find_position(0));
    found_position_ = find_position(1);
  }

  // In turn `turn` of a tile the warp's key of that number is asked for, and the one before has
  // come.
  __device__ void load_key(unsigned stage, int turn, bool wanted) {
    if constexpr (kFp8) {
      if (turn > 0) widen_key(stage, turn - 1, wanted);
      if (turn < kWarpKeys) ask_for_key(turn, wanted);
    } else if (turn < kWarpKeys) {
      copy_key(stage, turn, wanted);
    }
  }
  // Once `tile` is loaded: which rows the next one takes.
  __device__ void find_next(int tile) {
    found_ = find_row(found_position_);
    found_position_ = find_position(tile + 2);
  }
  __device__ void load_tile(unsigned stage, int tile) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) load_key(stage, turn, true);
    find_next(tile);
  }

 private:
  __device__ int find_position(int tile) const {
    const int i = begin_ + tile * kSplitTile + lane_.warp * kWarpKeys + lane_.matrix_row;
    const int position = visible_.position(min(i, end_ - 1));
    return i < end_ ? position : -1;
  }
  __device__ int find_row(int position) const {
    const int at = static_cast<int>(cache_row(pages_, max(position, 0)));
    return position < 0 ? -1 : at;
  }
  // Of the lane's first chunk.
  __device__ unsigned place_of(unsigned stage, int key) const {
    return stage + lane_.warp * kWarpKeys * kLatentRowBytes +
           swizzled(key, lane_.lane, kLatentWidth);
  }
  __device__ void copy_key(unsigned stage, int key, bool wanted) const {
    const int at = __shfl_sync(kAllLanes, found_, key);
    const bf16* from = static_cast<const bf16*>(cache_.data) + max(at, 0) * cache_.row_stride +
                       lane_.lane * kChunk;
    const unsigned to = place_of(stage, key);
#pragma unroll
    for (int i = 0; i < kLatentChunks; i += kWarp) {
      copy_async(to + i * kChunkBytes, from + i * kChunk, at >= 0,
                 wanted && i + lane_.lane < kLatentChunks);
    }
  }
  // FP8 rows pass through registers: one is asked for, then widened while the next is on its way.
  __device__ void ask_for_key(int key, bool wanted) {
    const int at = __shfl_sync(kAllLanes, found_, key);
    if (wanted) share_.load(cache_, at, lane_.lane);
  }
  __device__ void widen_key(unsigned stage, int key, bool wanted) const {
    if (!wanted) return;
    const unsigned to = place_of(stage, key);
    write_16(to, share_.low.widened());
    write_16(to + kWarp * kChunkBytes, share_.high.widened());
    if (lane_.lane < kLatentRope / kChunk) write_16(to + 2 * kWarp * kChunkBytes, share_.kept);
  }

  const TensorView& cache_;
  const std::int32_t* const pages_;
  const Visible visible_;
  const int begin_, end_;
  const BlockLane lane_;
  int found_;           // row of a key of the tile to load next
  int found_position_;  // of the tile after it
  Fp8Share share_;
};

}  // namespace stoker::gpu
