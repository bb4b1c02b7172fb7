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
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/splits.cuh"
#include "gpu/kernels/common/visible.cuh"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTileKeys = kSplitTile;
constexpr int kKeyTiles = kTileKeys / kMmaN;  // of a tile
constexpr int kChunks = kLatentWidth / kChunk;
constexpr int kWarpLatents = kLatentDim / kWarps;
constexpr int kMergeLatents = 4;  // of a thread
constexpr int kMergeThreads = kLatentDim / kMergeLatents;
constexpr float kLog2E = 1.44269504f;

static_assert(kTileKeys == kWarps * 8);

// Byte offset of a chunk in a tile of rows of `width` values: neighbouring rows are shifted against
// each other, so that eight of them are read without bank conflicts.
__device__ unsigned swizzled(int row, int chunk, int width) {
  return static_cast<unsigned>(row * width * 2 + (chunk ^ (row % 8)) * kChunkBytes);
}

constexpr quant::KvRowLayout kFp8Row = quant::kv_row_layout({kLatentDim, kLatentRope});
static_assert(kFp8Row.bytes % kChunkBytes == 0 && kFp8Row.kept_at % kChunkBytes == 0);
static_assert(kLatentDim == 2 * kWarp * kChunk && kLatentRope <= kWarp * kChunk);

// A lane's share of an FP8 row on its way: chunks `lane`, kWarp + `lane`, and one that is kept.
struct Fp8Share {
  uint2 codes[2];
  float scales[2];
  uint4 kept;

  // Row `at` of `cache`; zeros where that is negative.
  __device__ void load(const TensorView& cache, int at, int lane) {
    const auto* row = static_cast<const unsigned char*>(cache.data) + max(at, 0) * cache.row_stride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = i * kWarp + lane;
      codes[i] = reinterpret_cast<const uint2*>(row)[chunk];
      scales[i] =
          reinterpret_cast<const float*>(row + kFp8Row.scales_at)[chunk * kChunk / kKvGroup];
      if (at < 0) codes[i] = {}, scales[i] = 0.0f;
    }
    kept = {};
    if (at >= 0 && lane < kLatentRope / kChunk) {
      kept = reinterpret_cast<const uint4*>(row + kFp8Row.kept_at)[lane];
    }
  }
};

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

// One block per group of heads, split and row. Scores: a warp takes a tile of heads and some keys.
// Sums: a warp takes all heads and an eighth of the latent.
template <int kHeadTiles, bool kFp8>
__global__ void __launch_bounds__(kThreads, 1) attend_latent(AttendLatentParams a, int num_stages) {
  start_next();
  using L = Layout<kHeadTiles>;
  constexpr unsigned kRowBytes = kLatentWidth * 2, kWeightRowBytes = kTileKeys * 2;
  constexpr unsigned kStageBytes = kTileKeys * kRowBytes;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  const unsigned queries = shared_address(shared_bytes);  // [heads, width] swizzled
  const unsigned keys = queries + L::kHeads * kRowBytes;  // [stages, keys, width] swizzled
  const int weights_at = (L::kHeads + num_stages * kTileKeys) * static_cast<int>(kRowBytes);
  unsigned char* weights = shared_bytes + weights_at;  // BF16 [heads, keys] swizzled
  auto* tile_max =
      reinterpret_cast<float*>(weights + L::kHeads * kWeightRowBytes);  // [warps, heads]
  float* tile_sum = tile_max + L::kKeyWarps * L::kHeads;                // [key tiles, heads]
  float* shrinks = tile_sum + kKeyTiles * L::kHeads;                    // [heads]
  const AttendRowsParams& p = a.rows;
  const int head_begin = static_cast<int>(blockIdx.x) * L::kHeads;
  const int split = static_cast<int>(blockIdx.y);
  const std::int64_t local_row = blockIdx.z, row = a.row_begin + local_row;
  wait_for_previous();
  const Visible visible = visible_to(p, row);
  const Splits splits = splits_of(visible.count, a);
  const int begin = split * splits.keys, end = min(begin + splits.keys, visible.count);
  if (begin >= end) return;
  const int num_tiles = (end - begin + kTileKeys - 1) / kTileKeys;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int group = lane / 4, member = lane % 4;       // as in fragments
  const int matrix = lane / 8, matrix_row = lane % 8;  // as in load_matrices
  const std::int64_t scratch_row = local_row * p.dims.num_heads + head_begin;

  // Positions and cached rows of a tile: eight per warp, known to its lanes 0 to 7; -1 behind the
  // end. A tile's positions are asked for three tiles ahead and its rows two, and nobody waits.
  const std::int32_t* pages = p.step.latent_pages + p.step.latent_first[row];
  const auto find_positions = [&](int tile) {
    const int i = begin + tile * kTileKeys + warp * 8 + matrix_row;
    const int position = visible.position(min(i, end - 1));
    return i < end ? position : -1;
  };
  const auto find_rows = [&](int position) {
    const int at = static_cast<int>(cache_row(pages, max(position, 0)));
    return position < 0 ? -1 : at;
  };
  int found = find_rows(find_positions(0));  // of the tile to load next
  int found_positions = find_positions(1);   // of the one after it
  const auto find_next = [&](int tile) {
    found = find_rows(found_positions);
    found_positions = find_positions(tile + 2);
  };
  const auto place_of = [&](unsigned stage, int key) {  // of the lane's first chunk
    return stage + warp * 8 * kRowBytes + swizzled(key, lane, kLatentWidth);
  };
  const auto copy_key = [&](unsigned stage, int key, bool wanted) {
    const int at = __shfl_sync(kAllLanes, found, key);
    const TensorView& rows = p.cache.rows;
    const bf16* from =
        static_cast<const bf16*>(rows.data) + max(at, 0) * rows.row_stride + lane * kChunk;
    const unsigned to = place_of(stage, key);
#pragma unroll
    for (int i = 0; i < kChunks; i += kWarp) {
      copy_async(to + i * kChunkBytes, from + i * kChunk, at >= 0, wanted && i + lane < kChunks);
    }
  };
  // FP8 rows pass through registers: one is asked for, then widened while the next is on its way.
  Fp8Share share;
  const auto ask_for_key = [&](int key, bool wanted) {
    const int at = __shfl_sync(kAllLanes, found, key);
    if (wanted) share.load(p.cache.rows, at, lane);
  };
  const auto widen_key = [&](unsigned stage, int key, bool wanted) {
    if (!wanted) return;
    const unsigned to = place_of(stage, key);
    write_16(to, widen_codes(share.codes[0], share.scales[0]));
    write_16(to + kWarp * kChunkBytes, widen_codes(share.codes[1], share.scales[1]));
    if (lane < kLatentRope / kChunk) write_16(to + 2 * kWarp * kChunkBytes, share.kept);
  };
  // Turn `turn` of nine: the key of that number is asked for, and the one before has come.
  const auto load_key = [&](unsigned stage, int turn, bool wanted) {
    if constexpr (kFp8) {
      if (turn > 0) widen_key(stage, turn - 1, wanted);
      if (turn < 8) ask_for_key(turn, wanted);
    } else {
      if (turn < 8) copy_key(stage, turn, wanted);
    }
  };
  const auto load_tile = [&](int tile) {
#pragma unroll
    for (int turn = 0; turn < 9; ++turn) load_key(keys, turn, true);
    find_next(tile);
  };
  for (int i = thread; i < L::kHeads * kChunks; i += kThreads) {
    const int head = i / kChunks, chunk = i % kChunks;
    copy_async(queries + swizzled(head, chunk, kLatentWidth),
               a.queries + (scratch_row + head) * kLatentWidth + chunk * kChunk);
  }
  load_tile(0);

  // Byte offsets of chunks within eight, for rows whose index modulo 8 is matrix_row: of two
  // matrices side by side (and two below each other), and of four side by side.
  unsigned pair_at[4], four_at[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) pair_at[i] = ((2 * i + matrix / 2) ^ matrix_row) * kChunkBytes;
#pragma unroll
  for (int i = 0; i < 2; ++i) four_at[i] = ((4 * i + matrix) ^ matrix_row) * kChunkBytes;
  const int pair_row = matrix % 2 * 8 + matrix_row;
  const int head_tile = warp / L::kKeyWarps, key_warp = warp % L::kKeyWarps;
  const int head_of_half[2] = {head_tile * kMmaM + group, head_tile * kMmaM + group + 8};
  const unsigned query_rows = queries + (head_tile * kMmaM + pair_row) * kRowBytes;
  constexpr int kHeld = L::kHoldsQueries ? kChunks / 2 : 1;
  unsigned held[kHeld][4];
  if constexpr (L::kHoldsQueries) {
    wait_for_copies();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      load_matrices(held[k], query_rows + k / 4 * 8 * kChunkBytes + pair_at[k % 4]);
    }
  }
  const unsigned weight_rows = shared_address(weights) + pair_row * kWeightRowBytes;
  const float scale = p.dims.softmax_scale * kLog2E;
  float highest[2] = {-INFINITY, -INFINITY};  // of the warp's heads, in powers of two
  float total = 0.0f;                         // of head `thread`
  float sums[kHeadTiles][kWarpLatents / kMmaN][4] = {};
  unsigned stage_at = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    wait_for_copies();
    __syncthreads();
    const bool ahead = num_stages > 1 && tile + 1 < num_tiles;
    const unsigned tile_keys = keys + stage_at, other_keys = keys + (kStageBytes - stage_at);

    // 1. Scores, even and odd steps of k apart: half as long a chain. The next tile is asked for
    // on the way.
    float scores[2][L::kWarpKeyTiles][4] = {};
    const unsigned key_rows =
        tile_keys + (key_warp * L::kWarpKeyTiles * kMmaN + matrix_row) * kRowBytes;
#pragma unroll
    for (int k = 0; k < kChunks; k += 8) {
      load_key(other_keys, k / 8, ahead);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        unsigned loaded[2][4];
        if constexpr (!L::kHoldsQueries) {
          load_matrices(loaded[0], query_rows + k * kChunkBytes + pair_at[2 * i]);
          load_matrices(loaded[1], query_rows + k * kChunkBytes + pair_at[2 * i + 1]);
        }
        const auto& even = L::kHoldsQueries ? held[(k / 2 + 2 * i) % kHeld] : loaded[0];
        const auto& odd = L::kHoldsQueries ? held[(k / 2 + 2 * i + 1) % kHeld] : loaded[1];
#pragma unroll
        for (int n = 0; n < L::kWarpKeyTiles; ++n) {
          unsigned b[4];
          load_matrices(b, key_rows + n * kMmaN * kRowBytes + k * kChunkBytes + four_at[i]);
          mma(scores[0][n], even, b[0], b[1]);
          mma(scores[1][n], odd, b[2], b[3]);
        }
      }
    }
    if (num_stages > 1) find_next(tile + 1);
    float above[2] = {highest[0], highest[1]};
#pragma unroll
    for (int n = 0; n < L::kWarpKeyTiles; ++n) {
      const int key = begin + tile * kTileKeys + (key_warp * L::kWarpKeyTiles + n) * kMmaN;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = key + 2 * member + i % 2 < end;
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
      tile_max[key_warp * L::kHeads + head_of_half[half]] = above[half];
    }
    __syncthreads();

    // 2. Weights relative to the highest score so far.
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int w = 0; w < L::kKeyWarps; ++w) {
        above[half] = fmaxf(above[half], tile_max[w * L::kHeads + head_of_half[half]]);
      }
      shrink[half] = exp2f(highest[half] - above[half]);  // 0 for the first tile
      highest[half] = above[half];
      if (key_warp == 0) shrinks[head_of_half[half]] = shrink[half];
    }
#pragma unroll
    for (int n = 0; n < L::kWarpKeyTiles; ++n) {
      const int key_tile = key_warp * L::kWarpKeyTiles + n;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int head = head_of_half[half];
        const float low = exp2f(scores[0][n][2 * half] - highest[half]);
        const float high = exp2f(scores[0][n][2 * half + 1] - highest[half]);
        *reinterpret_cast<unsigned*>(weights + swizzled(head, key_tile, kTileKeys) + 4 * member) =
            pack_bf16(low, high);
        float sum = low + high;
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        tile_sum[key_tile * L::kHeads + head] = sum;
      }
    }
    __syncthreads();

    // 3. The weighted sum of latents.
    if (thread < L::kHeads) {
      float s[kKeyTiles];
#pragma unroll
      for (int i = 0; i < kKeyTiles; ++i) s[i] = tile_sum[i * L::kHeads + thread];
      total = total * shrinks[thread] +
              (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    }
#pragma unroll
    for (int m = 0; m < kHeadTiles; ++m) {
      const float factor[2] = {shrinks[m * kMmaM + group], shrinks[m * kMmaM + group + 8]};
      if (__all_sync(kAllLanes, factor[0] == 1.0f && factor[1] == 1.0f)) continue;
#pragma unroll
      for (auto& sum : sums[m]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] *= factor[i / 2];
      }
    }
    const unsigned latents = tile_keys + pair_row * kRowBytes + warp * kWarpLatents * 2;
#pragma unroll
    for (int k = 0; k < kTileKeys / kMmaK; ++k) {
      unsigned w[kHeadTiles][4];
#pragma unroll
      for (int m = 0; m < kHeadTiles; ++m) {
        load_matrices(w[m], weight_rows + m * kMmaM * kWeightRowBytes + pair_at[k]);
      }
#pragma unroll
      for (int n = 0; n < kWarpLatents / kMmaN; n += 2) {
        unsigned b[4];
        load_matrices_transposed(b, latents + k * kMmaK * kRowBytes + pair_at[n / 2]);
#pragma unroll
        for (int m = 0; m < kHeadTiles; ++m) {
          mma(sums[m][n], w[m], b[0], b[1]);
          mma(sums[m][n + 1], w[m], b[2], b[3]);
        }
      }
    }
    if (num_stages == 1 && tile + 1 < num_tiles) {
      __syncthreads();
      load_tile(tile + 1);
    }
    if (num_stages > 1) stage_at = kStageBytes - stage_at;
  }

  // 4. The result of the only split takes the place of its queries; others are left to be merged.
  __syncthreads();
  float* highs = tile_max;
  float* totals = tile_sum;
  if (thread < L::kHeads) totals[thread] = total;
  if (key_warp == 0 && member == 0) {
    highs[head_of_half[0]] = highest[0];
    highs[head_of_half[1]] = highest[1];
  }
  __syncthreads();
  const bool only = splits.count == 1 && !a.projection_merges();
  const std::int64_t split_row = (local_row * a.max_splits + split) * p.dims.num_heads + head_begin;
  if (!only && thread < L::kHeads) {
    a.split_stats[split_row + thread] = {highs[thread], totals[thread]};
  }
#pragma unroll
  for (int m = 0; m < kHeadTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = m * kMmaM + group + half * 8;
#pragma unroll
      for (int n = 0; n < kWarpLatents / kMmaN; ++n) {
        const int latent = warp * kWarpLatents + n * kMmaN + 2 * member;
        const float low = sums[m][n][2 * half], high = sums[m][n][2 * half + 1];
        if (only) {
          *reinterpret_cast<unsigned*>(a.queries + (scratch_row + head) * kLatentWidth + latent) =
              pack_bf16(low / totals[head], high / totals[head]);
        } else {
          *reinterpret_cast<float2*>(a.split_sums + (split_row + head) * kLatentDim + latent) = {
              low, high};
        }
      }
    }
  }
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
