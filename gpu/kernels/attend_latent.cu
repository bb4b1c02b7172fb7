// Attention in latent space on tensor cores: all heads of a row share its keys, so a tile of keys
// is gathered into shared memory once and multiplied with many heads. Rows of an FP8 cache become
// BF16 there, which is exact: from then on nothing differs.
//
// The keys of a row are split among blocks, and the splits are merged later. Both the splits
// and the tiles within them depend on the row's own number of keys and purpose alone, and every sum
// on its own order alone: neither other rows nor the number of heads in a block changes a bit.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/latent_keys.cuh"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/splits.cuh"
#include "gpu/kernels/common/visible.cuh"

namespace stoker::gpu {
namespace {

constexpr int kWarps = kLoadWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTileKeys = kSplitTile;
constexpr int kKeyTiles = kTileKeys / kMmaN;  // of a tile
constexpr int kChunks = kLatentChunks;
constexpr int kWarpLatents = kLatentDim / kWarps;
constexpr int kMergeLatents = 4;  // of a thread
constexpr int kMergeThreads = kLatentDim / kMergeLatents;
constexpr unsigned kRowBytes = kLatentRowBytes, kWeightRowBytes = kTileKeys * 2;
constexpr unsigned kStageBytes = kTileKeys * kRowBytes;
constexpr float kLog2E = 1.44269504f;

template <int kHeadTiles>
struct Layout {
  static constexpr int kHeads = kHeadTiles * kMmaM;
  static constexpr int kKeyWarps = kWarps / kHeadTiles;        // warps that share a head tile
  static constexpr int kWarpKeyTiles = kKeyTiles / kKeyWarps;  // of the scores
  // Few sums leave registers for a warp's queries.
  static constexpr bool kHoldsQueries = kHeadTiles == 1;
  static int shared_bytes(int num_stages) {
    const int values = (kHeads + num_stages * kTileKeys) * kLatentWidth + kHeads * kTileKeys;
    const int floats = (kKeyWarps + kKeyTiles + 1) * kHeads;
    return values * static_cast<int>(sizeof(bf16)) + floats * static_cast<int>(sizeof(float));
  }
};

// Byte offsets of chunks within eight, for rows whose index modulo 8 is matrix_row: of two
// matrices side by side (and two below each other), and of four side by side.
struct ChunkOffsets {
  unsigned pair[4], four[2];

  __device__ explicit ChunkOffsets(const BlockLane& lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pair[i] = ((2 * i + lane.matrix / 2) ^ lane.matrix_row) * kChunkBytes;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) four[i] = ((4 * i + lane.matrix) ^ lane.matrix_row) * kChunkBytes;
  }
};

// Shared memory of a block.
template <int kHeadTiles>
struct SharedParts {
  using L = Layout<kHeadTiles>;
  unsigned queries;        // [heads, width] swizzled
  unsigned keys;           // [stages, keys, width] swizzled
  unsigned char* weights;  // BF16 [heads, keys] swizzled
  float* tile_max;         // [warps, heads]
  float* tile_sum;         // [key tiles, heads]
  float* shrinks;          // [heads]

  __device__ SharedParts(unsigned char* bytes, int num_stages) {
    queries = shared_address(bytes);
    keys = queries + L::kHeads * kRowBytes;
    weights = bytes + (L::kHeads + num_stages * kTileKeys) * static_cast<int>(kRowBytes);
    tile_max = reinterpret_cast<float*>(weights + L::kHeads * kWeightRowBytes);
    tile_sum = tile_max + L::kKeyWarps * L::kHeads;
    shrinks = tile_sum + kKeyTiles * L::kHeads;
  }
};

// Which scores a warp computes: those of a tile of heads with some of the keys.
template <int kHeadTiles>
struct Place : BlockLane {
  using L = Layout<kHeadTiles>;
  int head_tile, key_warp;

  __device__ explicit Place(const BlockLane& lane) : BlockLane(lane) {
    head_tile = warp / L::kKeyWarps, key_warp = warp % L::kKeyWarps;
  }
  // The thread's in either half of a fragment.
  __device__ int head(int half) const { return head_tile * kMmaM + group + 8 * half; }
};

// The queries of a warp's heads as fragments: in registers where there is room, otherwise loaded
// whenever they are asked for.
template <int kHeadTiles>
class Queries {
 public:
  using Fragment = unsigned[4];

  // Waits for them, if they are to stay.
  __device__ Queries(unsigned queries, const Place<kHeadTiles>& place, const ChunkOffsets& at)
      : rows_(queries + (place.head_tile * kMmaM + place.pair_row()) * kRowBytes), at_(at) {
    if constexpr (kHolds) {
      wait_for_copies();
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load(k, held_[k]);
    }
  }
  // Step `k` of the dots; `room` may be where it is.
  __device__ const Fragment& step(int k, Fragment& room) const {
    if constexpr (kHolds) {
      return held_[k];
    } else {
      load(k, room);
      return room;
    }
  }

 private:
  static constexpr bool kHolds = Layout<kHeadTiles>::kHoldsQueries;
  static constexpr int kSteps = kChunks / 2;

  __device__ void load(int k, Fragment& out) const {
    load_matrices(out, rows_ + k / 4 * 8 * kChunkBytes + at_.pair[k % 4]);
  }

  const unsigned rows_;
  const ChunkOffsets at_;
  Fragment held_[kHolds ? kSteps : 1];
};

// What a block takes: a group of heads, a split and a row.
struct Part {
  int head_begin, split;
  std::int64_t local_row, row;

  __device__ Part(const AttendLatentParams& a, int heads_per_block)
      : head_begin(static_cast<int>(blockIdx.x) * heads_per_block),
        split(static_cast<int>(blockIdx.y)),
        local_row(blockIdx.z),
        row(a.row_begin + local_row) {}
};

// A block's queries, which begin at `row` of a.queries, to `to`; there after wait_for_copies().
template <int kHeadTiles>
__device__ void load_queries(const AttendLatentParams& a, std::int64_t row, unsigned to) {
  for (int i = static_cast<int>(threadIdx.x); i < Layout<kHeadTiles>::kHeads * kChunks;
       i += kThreads) {
    const int head = i / kChunks, chunk = i % kChunks;
    copy_async(to + swizzled(head, chunk, kLatentWidth),
               a.queries + (row + head) * kLatentWidth + chunk * kChunk);
  }
}

template <int kHeadTiles>
using Scores = float[2][Layout<kHeadTiles>::kWarpKeyTiles][4];  // of even and of odd steps
template <int kHeadTiles>
using Sums = float[kHeadTiles][kWarpLatents / kMmaN][4];  // of the warp's latents

// Dots of a tile's keys, even and odd steps of k apart: half as long a chain. The next tile is
// asked for on the way, if `ahead`.
template <int kHeadTiles, bool kFp8>
__device__ void score_tile(const Queries<kHeadTiles>& queries, unsigned tile_keys,
                           const Place<kHeadTiles>& place, const ChunkOffsets& at,
                           KeyLoader<kFp8>& loader, unsigned next_stage, bool ahead,
                           Scores<kHeadTiles>& scores) {
  using L = Layout<kHeadTiles>;
  const unsigned key_rows =
      tile_keys + (place.key_warp * L::kWarpKeyTiles * kMmaN + place.matrix_row) * kRowBytes;
  static_assert(KeyLoader<kFp8>::kTurns == kChunks / 8);
#pragma unroll
  for (int k = 0; k < kChunks; k += 8) {
    loader.load_key(next_stage, k / 8, ahead);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned room[2][4];
      const auto& even = queries.step(k / 2 + 2 * i, room[0]);
      const auto& odd = queries.step(k / 2 + 2 * i + 1, room[1]);
#pragma unroll
      for (int n = 0; n < L::kWarpKeyTiles; ++n) {
        unsigned b[4];
        load_matrices(b, key_rows + n * kMmaN * kRowBytes + k * kChunkBytes + at.four[i]);
        mma(scores[0][n], even, b[0], b[1]);
        mma(scores[1][n], odd, b[2], b[3]);
      }
    }
  }
}

// Dots become scores in powers of two, in scores[0]; `begin` is the tile's first key, and there is
// none from `end` on. Raises `above` to the warp's highest, and leaves that in tile_max.
template <int kHeadTiles>
__device__ void close_scores(const SharedParts<kHeadTiles>& shared, const Place<kHeadTiles>& place,
                             int begin, int end, float scale, Scores<kHeadTiles>& scores,
                             float (&above)[2]) {
  using L = Layout<kHeadTiles>;
#pragma unroll
  for (int n = 0; n < L::kWarpKeyTiles; ++n) {
    const int key = begin + (place.key_warp * L::kWarpKeyTiles + n) * kMmaN;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = key + 2 * place.member + i % 2 < end;
      float& score = scores[0][n][i];
      const float sum = __fadd_rn(score, scores[1][n][i]) * scale;
      score = valid ? sum : -INFINITY;
      above[i / 2] = fmaxf(above[i / 2], score);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    above[half] = fmaxf(above[half], __shfl_xor_sync(kAllLanes, above[half], 1));
    above[half] = fmaxf(above[half], __shfl_xor_sync(kAllLanes, above[half], 2));
    shared.tile_max[place.key_warp * L::kHeads + place.head(half)] = above[half];
  }
}

// Raises `highest` to what all warps have left, and leaves what the sums so far shrink by.
template <int kHeadTiles>
__device__ void raise_highest(const SharedParts<kHeadTiles>& shared, const Place<kHeadTiles>& place,
                              float (&above)[2], float (&highest)[2]) {
  using L = Layout<kHeadTiles>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = place.head(half);
#pragma unroll
    for (int w = 0; w < L::kKeyWarps; ++w) {
      above[half] = fmaxf(above[half], shared.tile_max[w * L::kHeads + head]);
    }
    const float shrink = exp2f(highest[half] - above[half]);  // 0 for the first tile
    highest[half] = above[half];
    if (place.key_warp == 0) shared.shrinks[head] = shrink;
  }
}

// Weights relative to the highest score so far, and their sums of eight.
template <int kHeadTiles>
__device__ void weigh_keys(const SharedParts<kHeadTiles>& shared, const Place<kHeadTiles>& place,
                           const Scores<kHeadTiles>& scores, const float (&highest)[2]) {
  using L = Layout<kHeadTiles>;
#pragma unroll
  for (int n = 0; n < L::kWarpKeyTiles; ++n) {
    const int key_tile = place.key_warp * L::kWarpKeyTiles + n;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = place.head(half);
      const float low = exp2f(scores[0][n][2 * half] - highest[half]);
      const float high = exp2f(scores[0][n][2 * half + 1] - highest[half]);
      *reinterpret_cast<unsigned*>(shared.weights + swizzled(head, key_tile, kTileKeys) +
                                   4 * place.member) = pack_bf16(low, high);
      float sum = low + high;
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      shared.tile_sum[key_tile * L::kHeads + head] = sum;
    }
  }
}

// Adds the tile's weights of head `head`.
template <int kHeadTiles>
__device__ void add_weights(const SharedParts<kHeadTiles>& shared, int head, float& total) {
  float s[kKeyTiles];
#pragma unroll
  for (int i = 0; i < kKeyTiles; ++i) {
    s[i] = shared.tile_sum[i * Layout<kHeadTiles>::kHeads + head];
  }
  total = total * shared.shrinks[head] +
          (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
}

// Makes the sums so far relative to the highest score with this tile.
template <int kHeadTiles>
__device__ void shrink_sums(const float* shrinks, const BlockLane& lane, Sums<kHeadTiles>& sums) {
#pragma unroll
  for (int m = 0; m < kHeadTiles; ++m) {
    const float factor[2] = {shrinks[m * kMmaM + lane.group], shrinks[m * kMmaM + lane.group + 8]};
    if (__all_sync(kAllLanes, factor[0] == 1.0f && factor[1] == 1.0f)) continue;
#pragma unroll
    for (auto& sum : sums[m]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] *= factor[i / 2];
    }
  }
}

// Adds the weighted latents of a tile.
template <int kHeadTiles>
__device__ void add_latents(const SharedParts<kHeadTiles>& shared, unsigned tile_keys,
                            const BlockLane& lane, const ChunkOffsets& at, Sums<kHeadTiles>& sums) {
  const unsigned weight_rows = shared_address(shared.weights) + lane.pair_row() * kWeightRowBytes;
  const unsigned latents = tile_keys + lane.pair_row() * kRowBytes + lane.warp * kWarpLatents * 2;
#pragma unroll
  for (int k = 0; k < kTileKeys / kMmaK; ++k) {
    unsigned w[kHeadTiles][4];
#pragma unroll
    for (int m = 0; m < kHeadTiles; ++m) {
      load_matrices(w[m], weight_rows + m * kMmaM * kWeightRowBytes + at.pair[k]);
    }
#pragma unroll
    for (int n = 0; n < kWarpLatents / kMmaN; n += 2) {
      unsigned b[4];
      load_matrices_transposed(b, latents + k * kMmaK * kRowBytes + at.pair[n / 2]);
#pragma unroll
      for (int m = 0; m < kHeadTiles; ++m) {
        mma(sums[m][n], w[m], b[0], b[1]);
        mma(sums[m][n + 1], w[m], b[2], b[3]);
      }
    }
  }
}

// What each head has come to, for all warps: in tile_max and tile_sum.
template <int kHeadTiles>
__device__ void share_stats(const SharedParts<kHeadTiles>& shared, const Place<kHeadTiles>& place,
                            const float (&highest)[2], float total) {
  if (place.thread < Layout<kHeadTiles>::kHeads) shared.tile_sum[place.thread] = total;
  if (place.key_warp == 0 && place.member == 0) {
    shared.tile_max[place.head(0)] = highest[0];
    shared.tile_max[place.head(1)] = highest[1];
  }
}

// The result of the only split takes the place of its queries; others are left to be merged.
template <int kHeadTiles>
__device__ void store_sums(const AttendLatentParams& a, const Part& part, std::int64_t query_row,
                           int num_splits, const SharedParts<kHeadTiles>& shared,
                           const BlockLane& lane, const Sums<kHeadTiles>& sums) {
  const float *highs = shared.tile_max, *totals = shared.tile_sum;
  const bool only = num_splits == 1 && !a.projection_merges();
  const std::int64_t split_row =
      (part.local_row * a.max_splits + part.split) * a.rows.dims.num_heads + part.head_begin;
  if (!only && lane.thread < Layout<kHeadTiles>::kHeads) {
    a.split_stats[split_row + lane.thread] = {highs[lane.thread], totals[lane.thread]};
  }
  // Read once: stores through them might change `a`, as far as the compiler knows.
  bf16* const results = a.queries;
  float* const split_sums = a.split_sums;
#pragma unroll
  for (int m = 0; m < kHeadTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = m * kMmaM + lane.group + half * 8;
#pragma unroll
      for (int n = 0; n < kWarpLatents / kMmaN; ++n) {
        const int latent = lane.warp * kWarpLatents + n * kMmaN + 2 * lane.member;
        const float low = sums[m][n][2 * half], high = sums[m][n][2 * half + 1];
        if (only) {
          *reinterpret_cast<unsigned*>(results + (query_row + head) * kLatentWidth + latent) =
              pack_bf16(low / totals[head], high / totals[head]);
        } else {
          *reinterpret_cast<float2*>(split_sums + (split_row + head) * kLatentDim + latent) = {
              low, high};
        }
      }
    }
  }
}

// One block per group of heads, split and row. Scores: a warp takes a tile of heads and some keys.
// Sums: a warp takes all heads and an eighth of the latent.
template <int kHeadTiles, bool kFp8>
__global__ void __launch_bounds__(kThreads, 1) attend_latent(AttendLatentParams a, int num_stages) {
  start_next();
  using L = Layout<kHeadTiles>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  const SharedParts<kHeadTiles> shared(shared_bytes, num_stages);
  const Part part(a, L::kHeads);
  wait_for_previous();
  const Visible visible = visible_to(a.rows, part.row);
  const Splits splits = splits_of(visible.count, a);
  const int begin = part.split * splits.keys, end = min(begin + splits.keys, visible.count);
  if (begin >= end) return;
  const int num_tiles = (end - begin + kTileKeys - 1) / kTileKeys;
  const BlockLane lane;
  const std::int64_t query_row = part.local_row * a.rows.dims.num_heads + part.head_begin;
  KeyLoader<kFp8> loader(a.rows, part.row, visible, begin, end, lane);
  load_queries<kHeadTiles>(a, query_row, shared.queries);
  loader.load_tile(shared.keys, 0);

  const ChunkOffsets at(lane);
  const Place<kHeadTiles> place(lane);
  const Queries<kHeadTiles> queries(shared.queries, place, at);
  const float scale = a.rows.dims.softmax_scale * kLog2E;
  float highest[2] = {-INFINITY, -INFINITY};  // of the warp's heads, in powers of two
  float total = 0.0f;                         // of head `thread`
  Sums<kHeadTiles> sums = {};
  unsigned stage_at = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    wait_for_copies();
    __syncthreads();
    const bool ahead = num_stages > 1 && tile + 1 < num_tiles;
    const unsigned tile_keys = shared.keys + stage_at;
    const unsigned other_keys = shared.keys + (kStageBytes - stage_at);

    // 1. Scores. The next tile is asked for on the way.
    Scores<kHeadTiles> scores = {};
    score_tile(queries, tile_keys, place, at, loader, other_keys, ahead, scores);
    if (num_stages > 1) loader.find_next(tile + 1);
    float above[2] = {highest[0], highest[1]};
    close_scores(shared, place, begin + tile * kTileKeys, end, scale, scores, above);
    __syncthreads();

    // 2. Weights relative to the highest score so far.
    raise_highest(shared, place, above, highest);
    weigh_keys(shared, place, scores, highest);
    __syncthreads();

    // 3. The weighted sum of latents.
    if (lane.thread < L::kHeads) add_weights(shared, lane.thread, total);
    shrink_sums(shared.shrinks, lane, sums);
    add_latents(shared, tile_keys, lane, at, sums);
    if (num_stages == 1 && tile + 1 < num_tiles) {
      __syncthreads();
      loader.load_tile(shared.keys, tile + 1);
    }
    if (num_stages > 1) stage_at = kStageBytes - stage_at;
  }

  // 4. The results.
  __syncthreads();
  share_stats(shared, place, highest, total);
  __syncthreads();
  store_sums(a, part, query_row, splits.count, shared, lane, sums);
}

// One block per head and row: its splits, in order.
__global__ void __launch_bounds__(kMergeThreads) merge_rows(AttendLatentParams a) {
  start_next();
  const std::int64_t local_row = blockIdx.y;
  const int head = static_cast<int>(blockIdx.x);
  wait_for_previous();
  const Splits splits = splits_of(visible_to(a.rows, a.row_begin + local_row).count, a);
  if (splits.count == 1) return;
  float sums[kMergeLatents];
  merge_splits(a, local_row, head, splits.count, sums);
  bf16* out = a.queries + (local_row * a.rows.dims.num_heads + head) * kLatentWidth;
  reinterpret_cast<uint2*>(out)[threadIdx.x] = {pack_bf16(sums[0], sums[1]),
                                                pack_bf16(sums[2], sums[3])};
}

template <int kHeadTiles>
Status launch_tiles(const AttendLatentParams& a, int num_stages, const Stream& stream) {
  using L = Layout<kHeadTiles>;
  const int shared_bytes = L::shared_bytes(num_stages);
  auto* const kernel =
      a.rows.cache.is_fp8() ? attend_latent<kHeadTiles, true> : attend_latent<kHeadTiles, false>;
  RETURN_IF_ERROR(
      cuda_status(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "attention: shared memory for a tile of keys"),
      "{} bytes", shared_bytes);
  const dim3 grid(static_cast<unsigned>(a.rows.dims.num_heads / L::kHeads),
                  static_cast<unsigned>(a.max_splits), static_cast<unsigned>(a.num_rows));
  return launch_kernel("attend_latent", kernel, {grid, dim3(kThreads), shared_bytes}, stream, a,
                       num_stages);
}

}  // namespace

Status launch_attend_latent(const AttendLatentParams& params, const Stream& stream) {
  const AttendLatentParams& a = params;
  ASSIGN_OR_RETURN(const bool few, suits_attend_few(a));
  if (few) return launch_attend_few(a, stream);
  ASSIGN_OR_RETURN(const int shared_limit,
                   device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  ASSIGN_OR_RETURN(const int num_sms, device_attribute(cudaDevAttrMultiProcessorCount));
  // Many heads in a block read the keys less often; few make more blocks of a few rows. A block of
  // many takes about as long as two of few.
  constexpr int kMany = 4, kFew = 1;
  const int heads = a.rows.dims.num_heads;
  const auto waves = [&](int heads_per_block) {
    return (std::int64_t{a.num_rows} * a.max_splits * (heads / heads_per_block) + num_sms - 1) /
           num_sms;
  };
  const bool many = heads % Layout<kMany>::kHeads == 0 &&
                    Layout<kMany>::shared_bytes(1) <= shared_limit &&
                    2 * waves(Layout<kMany>::kHeads) < waves(Layout<kFew>::kHeads);
  if (many) {
    const int num_stages = Layout<kMany>::shared_bytes(2) <= shared_limit ? 2 : 1;
    RETURN_IF_ERROR(launch_tiles<kMany>(a, num_stages, stream));
  } else {
    const int num_stages = Layout<kFew>::shared_bytes(2) <= shared_limit ? 2 : 1;
    RETURN_IF_ERROR(launch_tiles<kFew>(a, num_stages, stream));
  }
  if (a.max_splits == 1 || a.projection_merges()) return {};
  const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(a.num_rows));
  return launch_kernel("merge_splits", merge_rows, {grid, dim3(kMergeThreads)}, stream, a);
}

}  // namespace stoker::gpu
