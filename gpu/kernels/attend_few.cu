// Attention in latent space for one row. A cluster of two blocks takes sixteen heads and a split of
// up to 256 keys, one half of it each, and all of them are on their way at once: a split costs one
// trip to memory. Compute capability 9.0.
//
// To the bits of attend_latent.cu, which walks the tiles of a split one after the other: the second
// block waits for the highest scores of the first, and goes on from its sums.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/bulk_copy.cuh"
#include "gpu/kernels/common/cluster.cuh"
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
constexpr int kBlocksAtOnce = 3;  // by registers: one has room beside those before and after it
constexpr int kHeads = kMmaM;     // of a block
constexpr int kTiles = 2;
constexpr int kKeys = kTiles * kSplitTile;  // of a block
constexpr int kChunks = kLatentWidth / kChunk;
constexpr int kPitch = (kChunks + 1) * kChunkBytes;  // bytes of a row: no bank twice
constexpr int kWeightPitch = (kKeys + kChunk) * 2;
constexpr int kTileParts = kSplitTile / kMmaN;

// An FP8 row comes to the end of where it is to stand widened.
constexpr int kFp8At = kPitch - kFp8LatentRow.bytes;
static_assert(kFp8At % kChunkBytes == 0 && kFp8LatentRow.kept_at % kChunkBytes == 0);

// Shared memory in bytes: keys first.
constexpr int kHeldPages = 2560;
constexpr int kSentBytes = kHeads * kLatentDim * 4;
constexpr int kQueriesAt = kKeys * kPitch;
constexpr int kEarlierSumsAt = kQueriesAt + kHeads * kPitch;  // of the first block
constexpr int kPagesAt = kEarlierSumsAt + kSentBytes;
constexpr int kWeightsAt = kPagesAt + kHeldPages * 4;
constexpr int kMaxAt = kWeightsAt + kHeads * kWeightPitch;               // [warps, heads]
constexpr int kEarlierMaxAt = kMaxAt + kWarps * kHeads * 4;              // of the first block
constexpr int kPartSumAt = kEarlierMaxAt + kWarps * kHeads * 4;          // [eights of keys, heads]
constexpr int kTotalAt = kPartSumAt + kTiles * kTileParts * kHeads * 4;  // [heads]
constexpr int kEarlierTotalAt = kTotalAt + kHeads * 4;
constexpr int kBarriersAt = kEarlierTotalAt + kHeads * 4;  // [warps]
constexpr int kMaxBarrierAt = kBarriersAt + kWarps * 8, kSumBarrierAt = kMaxBarrierAt + 8;
constexpr int kSharedBytes = kSumBarrierAt + 8;

// Older devices get a kernel without a body, which is never launched.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define STOKER_HAS_CLUSTERS 1
#else
#define STOKER_HAS_CLUSTERS 0
#endif

#if STOKER_HAS_CLUSTERS
constexpr int kWarpKeys = kKeys / kWarps, kWarpParts = kWarpKeys / kMmaN;
constexpr int kTileWarps = kWarps / kTiles;
constexpr int kWarpLatents = kLatentDim / kWarps, kSumTiles = kWarpLatents / kMmaN;
constexpr float kLog2E = 1.44269504f;

struct Lane : BlockLane {
  __device__ int own_key() const { return warp * kWarpKeys + lane % kWarpKeys; }
};

// The keys of a block, of those that a row sees, and how many of the split lie from there on.
struct Keys {
  int begin, end, left;

  __device__ Keys(const AttendLatentParams& a, int count, int half) {
    const int each = splits_of(count, a).keys;
    const int split_begin = static_cast<int>(blockIdx.y) * each;
    const int split_end = min(split_begin + each, count);
    begin = split_begin + half * kKeys;
    end = min(begin + kKeys, split_end);
    left = split_end - begin;
  }
};

// A warp asks for its keys; lane l < kWarpKeys for key own_key(), at `row` of the cache or nowhere.
template <bool kFp8>
__device__ void ask_for_keys(const TensorView& cache, std::int64_t row, unsigned shared,
                             unsigned barrier) {
  constexpr int kElement = kFp8 ? 1 : 2;
  constexpr int kBytes = kFp8 ? kFp8LatentRow.bytes : kLatentWidth * 2;
  const Lane lane;
  if (lane.lane >= kWarpKeys) return;
  const unsigned to = shared + lane.own_key() * kPitch;
  if (row >= 0) {
    arrive(barrier, kBytes);
    copy_bulk(to + (kFp8 ? kFp8At : 0),
              static_cast<const unsigned char*>(cache.data) + row * cache.row_stride * kElement,
              kBytes, barrier);
  } else {
    for (int i = 0; i < kChunks; ++i) write_16(to + i * kChunkBytes, {});
    arrive(barrier, 0);
  }
}

// A warp's FP8 rows that have come are widened where they are.
__device__ void widen_keys(unsigned char* shared_bytes) {
  const Lane lane;
#pragma unroll 4
  for (int key = 0; key < kWarpKeys; ++key) {
    unsigned char* to = shared_bytes + (lane.warp * kWarpKeys + key) * kPitch;
    const unsigned char* from = to + kFp8At;
    const auto* codes = reinterpret_cast<const uint2*>(from);
    const auto* scales = reinterpret_cast<const float*>(from + kFp8LatentRow.scales_at);
    const uint2 low = codes[lane.lane], high = codes[kWarp + lane.lane];
    const float low_scale = scales[lane.lane * kChunk / kKvGroup];
    const float high_scale = scales[(kWarp + lane.lane) * kChunk / kKvGroup];
    const uint4 kept = reinterpret_cast<const uint4*>(
        from + kFp8LatentRow.kept_at)[lane.lane % (kLatentRope / kChunk)];
    __syncwarp();
    auto* out = reinterpret_cast<uint4*>(to);
    out[lane.lane] = widen_codes(low, low_scale);
    out[kWarp + lane.lane] = widen_codes(high, high_scale);
    if (lane.lane < kLatentRope / kChunk) out[2 * kWarp + lane.lane] = kept;
  }
  __syncwarp();
}

// Scores of the warp's keys in powers of two, `scale` times the dots; even and odd steps of k
// apart: half as long a chain. above: the highest of heads `group` and `group` + 8.
__device__ void score_keys(unsigned shared, const Keys& keys, float scale,
                           float (&scores)[kWarpParts][4], float (&above)[2]) {
  const Lane lane;
  const unsigned query_rows =
      shared + kQueriesAt + lane.pair_row() * kPitch + lane.matrix / 2 * kChunkBytes;
  const unsigned key_rows =
      shared + (lane.warp * kWarpKeys + lane.matrix_row) * kPitch + lane.matrix * kChunkBytes;
  float odd_scores[kWarpParts][4] = {};
#pragma unroll
  for (auto& score : scores) score[0] = score[1] = score[2] = score[3] = 0.0f;
#pragma unroll 6
  for (int k = 0; k < kChunks; k += 4) {
    unsigned even[4], odd[4];
    load_matrices(even, query_rows + k * kChunkBytes);
    load_matrices(odd, query_rows + (k + 2) * kChunkBytes);
#pragma unroll
    for (int n = 0; n < kWarpParts; ++n) {
      unsigned b[4];
      load_matrices(b, key_rows + n * kMmaN * kPitch + k * kChunkBytes);
      mma(scores[n], even, b[0], b[1]);
      mma(odd_scores[n], odd, b[2], b[3]);
    }
  }
  above[0] = above[1] = -INFINITY;
#pragma unroll
  for (int n = 0; n < kWarpParts; ++n) {
    const int key = keys.begin + lane.warp * kWarpKeys + n * kMmaN + 2 * lane.member;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = __fadd_rn(scores[n][i], odd_scores[n][i]) * scale;
      scores[n][i] = key + i % 2 < keys.end ? sum : -INFINITY;
      above[i / 2] = fmaxf(above[i / 2], scores[n][i]);
    }
  }
#pragma unroll
  for (float& high : above) {
    high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 1));
    high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 2));
  }
}

// The highest scores after each tile, of heads `group` and `group` + 8, and what sums before a tile
// shrink by.
struct Highest {
  float after[kTiles][2], shrink[kTiles][2];

  __device__ Highest(const unsigned char* shared_bytes, bool goes_on) {
    const Lane lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = lane.group + 8 * half;
      const auto highest_of = [&](int at, int begin, int count) {
        float top = -INFINITY;
        const auto* maxima = reinterpret_cast<const float*>(shared_bytes + at);
        for (int w = begin; w < begin + count; ++w) top = fmaxf(top, maxima[w * kHeads + head]);
        return top;
      };
      float highest = goes_on ? highest_of(kEarlierMaxAt, 0, kWarps) : -INFINITY;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float top = fmaxf(highest, highest_of(kMaxAt, t * kTileWarps, kTileWarps));
        shrink[t][half] = exp2f(highest - top);  // 0 for the first tile of a split
        after[t][half] = highest = top;
      }
    }
  }
  // Of head lane % 16, in a warp in step.
  __device__ static float of_lane(const float (&values)[2]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const float low = __shfl_sync(kAllLanes, values[0], lane % 8 * 4);
    const float high = __shfl_sync(kAllLanes, values[1], lane % 8 * 4);
    return lane % kHeads < 8 ? low : high;
  }
};

// Weights of the warp's keys relative to the highest score up to their tile, and sums of eight.
__device__ void weigh_keys(unsigned char* shared_bytes, const float (&scores)[kWarpParts][4],
                           const Highest& highest) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < kWarpParts; ++n) {
    const int part = lane.warp * kWarpParts + n;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = lane.group + 8 * half;
      const float top = lane.warp < kTileWarps ? highest.after[0][half] : highest.after[1][half];
      const float low = exp2f(scores[n][2 * half] - top);
      const float high = exp2f(scores[n][2 * half + 1] - top);
      *reinterpret_cast<unsigned*>(shared_bytes + kWeightsAt + head * kWeightPitch +
                                   part * kChunkBytes + 4 * lane.member) = pack_bf16(low, high);
      float sum = low + high;
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      reinterpret_cast<float*>(shared_bytes + kPartSumAt)[part * kHeads + head] = sum;
    }
  }
}

// The sum of weights of head lane % 16, a tile after the other: a warp in step.
__device__ float add_weights(const unsigned char* shared_bytes, const Highest& highest,
                             float total) {
  const int head = static_cast<int>(threadIdx.x) % kHeads;
  const auto* sums = reinterpret_cast<const float*>(shared_bytes + kPartSumAt) + head;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    float v[kTileParts];
#pragma unroll
    for (int i = 0; i < kTileParts; ++i) v[i] = sums[(t * kTileParts + i) * kHeads];
    total = total * Highest::of_lane(highest.shrink[t]) +
            (((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
  }
  return total;
}

using Sums = float[kSumTiles][4];  // of the warp's latents, as fragments

// The weighted sum of latents, a tile after the other.
__device__ void add_latents(unsigned shared, const Highest& highest, Sums& sums) {
  const Lane lane;
  const unsigned latents = shared + lane.pair_row() * kPitch + lane.warp * kWarpLatents * 2 +
                           lane.matrix / 2 * kChunkBytes;
  const unsigned weight_rows =
      shared + kWeightsAt + lane.pair_row() * kWeightPitch + lane.matrix / 2 * kChunkBytes;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (auto& sum : sums) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] *= highest.shrink[t][i / 2];
    }
#pragma unroll
    for (int k = 0; k < kSplitTile / kMmaK; ++k) {
      const int step = t * (kSplitTile / kMmaK) + k;
      unsigned w[4];
      load_matrices(w, weight_rows + step * 2 * kChunkBytes);
#pragma unroll
      for (int n = 0; n < kSumTiles; n += 2) {
        unsigned b[4];
        load_matrices_transposed(b, latents + step * kMmaK * kPitch + n * kChunkBytes);
        mma(sums[n], w, b[0], b[1]);
        mma(sums[n + 1], w, b[2], b[3]);
      }
    }
  }
}

// Calls store(head, latent, low, high) for pairs of the warp's latents.
template <typename F>
__device__ void for_each_pair(const Sums& sums, F&& store) {
  const Lane lane;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < kSumTiles; ++n) {
      store(lane.group + half * 8, lane.warp * kWarpLatents + n * kMmaN + 2 * lane.member,
            sums[n][2 * half], sums[n][2 * half + 1]);
    }
  }
}

// The result of the only split takes the place of its queries; others are left to be merged.
__device__ void store_sums(const AttendLatentParams& a, const float* totals, int head_begin,
                           const Sums& sums) {
  if (a.max_splits == 1) {
    for_each_pair(sums, [&](int head, int latent, float low, float high) {
      const float total = totals[head];
      *reinterpret_cast<unsigned*>(a.queries + (head_begin + head) * kLatentWidth + latent) =
          pack_bf16(low / total, high / total);
    });
  } else {
    const std::int64_t split_row =
        std::int64_t{static_cast<int>(blockIdx.y)} * a.rows.dims.num_heads + head_begin;
    for_each_pair(sums, [&](int head, int latent, float low, float high) {
      *reinterpret_cast<float2*>(a.split_sums + (split_row + head) * kLatentDim + latent) = {low,
                                                                                             high};
    });
  }
}

// Which of the two blocks of a cluster this is, and whether the other has keys too.
struct Pair {
  int half;
  bool both;
  __device__ bool hands_on() const { return both && half == 0; }
  __device__ bool goes_on() const { return both && half == 1; }
};

__device__ void init_barriers(unsigned shared, int half) {
  if (threadIdx.x < kWarps) init_barrier(shared + kBarriersAt + threadIdx.x * 8, kWarpKeys);
  if (threadIdx.x == 0) {
    init_barrier(shared + kMaxBarrierAt, 1);
    init_barrier(shared + kSumBarrierAt, 1);
    if (half == 1) {
      arrive(shared + kMaxBarrierAt, kWarps * kHeads * 4);
      arrive(shared + kSumBarrierAt, kSentBytes + kHeads * 4);
    }
  }
  fence_barrier();
}

// The highest scores of the warp, for all of the block, and from the first block for the second.
__device__ void share_maxima(unsigned char* shared_bytes, const Pair& pair,
                             const float (&above)[2]) {
  const Lane lane;
  if (lane.member != 0) return;
  const int at = lane.warp * kHeads + lane.group;
  auto* maxima = reinterpret_cast<float*>(shared_bytes + kMaxAt);
  maxima[at] = above[0], maxima[at + 8] = above[1];
  if (!pair.hands_on()) return;
  const unsigned there = shared_of_block(shared_address(shared_bytes), 1);
  const unsigned to = there + kEarlierMaxAt + 4 * at;
  send(to, above[0], there + kMaxBarrierAt);
  send(to + 8 * 4, above[1], there + kMaxBarrierAt);
}

__device__ void hand_on(unsigned shared, const Sums& sums, float total) {
  const Lane lane;
  const unsigned there = shared_of_block(shared, 1), barrier = there + kSumBarrierAt;
#pragma unroll
  for (int n = 0; n < kSumTiles; ++n) {
    send(there + kEarlierSumsAt + (n * kThreads + lane.thread) * 16, sums[n], barrier);
  }
  if (lane.thread < kHeads) send(there + kEarlierTotalAt + 4 * lane.thread, total, barrier);
}
__device__ void take_over(const unsigned char* shared_bytes, Sums& sums, float& total) {
  const auto* from = reinterpret_cast<const float4*>(shared_bytes + kEarlierSumsAt) + threadIdx.x;
#pragma unroll
  for (int n = 0; n < kSumTiles; ++n) {
    const float4 four = from[n * kThreads];
    sums[n][0] = four.x, sums[n][1] = four.y, sums[n][2] = four.z, sums[n][3] = four.w;
  }
  total = reinterpret_cast<const float*>(shared_bytes + kEarlierTotalAt)[threadIdx.x % kHeads];
}

// From scores to the split's sums, once the keys of the warp have come.
__device__ void attend_keys(const AttendLatentParams& a, unsigned char* shared_bytes,
                            const Keys& keys, const Pair& pair, int head_begin) {
  const Lane lane;
  const unsigned shared = shared_address(shared_bytes);
  float scores[kWarpParts][4], above[2];
  score_keys(shared, keys, a.rows.dims.softmax_scale * kLog2E, scores, above);
  share_maxima(shared_bytes, pair, above);
  __syncthreads();
  if (pair.goes_on()) wait_at(shared + kMaxBarrierAt);
  const Highest highest(shared_bytes, pair.goes_on());
  weigh_keys(shared_bytes, scores, highest);
  __syncthreads();
  Sums sums = {};
  float total = 0.0f;  // in the first warp
  if (pair.goes_on()) {
    wait_at(shared + kSumBarrierAt);
    take_over(shared_bytes, sums, total);
  }
  if (lane.warp == 0) total = add_weights(shared_bytes, highest, total);
  add_latents(shared, highest, sums);
  if (pair.hands_on()) {
    hand_on(shared, sums, total);
    return;
  }
  // The end of the split.
  auto* totals = reinterpret_cast<float*>(shared_bytes + kTotalAt);
  if (lane.warp == 0) {
    const float top = Highest::of_lane(highest.after[kTiles - 1]);
    if (lane.lane < kHeads) {
      totals[lane.lane] = total;
      if (a.max_splits > 1) {
        a.split_stats[std::int64_t{static_cast<int>(blockIdx.y)} * a.rows.dims.num_heads +
                      head_begin + lane.lane] = {top, total};
      }
    }
  }
  if (a.max_splits == 1) __syncthreads();
  store_sums(a, totals, head_begin, sums);
}

template <bool kFp8>
__device__ void attend_half(const AttendLatentParams& a) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  const unsigned shared = shared_address(shared_bytes);
  const AttendRowsParams& p = a.rows;
  const int half = static_cast<int>(blockIdx.x) % 2;
  const int head_begin = static_cast<int>(blockIdx.x) / 2 * kHeads;
  const std::int64_t row = a.row_begin;
  const Lane lane;
  init_barriers(shared, half);
  arrive_in_cluster();

  // 1. What no kernel writes: the step's tables.
  const int visible = __ldcg(p.step.positions + row) + 1;
  const std::int32_t* pages = p.step.latent_pages + __ldcg(p.step.latent_first + row);
  const int num_pages = (visible + kPageTokens - 1) / kPageTokens;
  if (num_pages <= kHeldPages) {
    auto* const held = reinterpret_cast<std::int32_t*>(shared_bytes + kPagesAt);
    for (int i = lane.thread; i < num_pages; i += kThreads) held[i] = __ldcg(pages + i);
    pages = held;
  }
  __syncthreads();

  // 2. Which keys: as if a selection were full, until its count is known.
  const int full = p.sparse ? static_cast<int>(p.selection.positions.cols) : visible;
  Keys keys(a, full, half);
  const std::int32_t* chosen = nullptr;
  int count = full, ahead = 0;
  wait_for_previous();
  if (p.sparse) {
    chosen = static_cast<const std::int32_t*>(p.selection.positions.data) +
             row * p.selection.positions.row_stride;
    ahead = chosen[min(keys.begin + lane.own_key(), full - 1)];
    count = static_cast<const std::int32_t*>(
        p.selection.counts.data)[row * p.selection.counts.row_stride];
  }
  for (int i = lane.thread; i < kHeads * kChunks; i += kThreads) {
    const int head = i / kChunks, chunk = i % kChunks;
    copy_async(shared + kQueriesAt + head * kPitch + chunk * kChunkBytes,
               a.queries + (head_begin + head) * kLatentWidth + chunk * kChunk);
  }
  if (count < 0) chosen = nullptr, count = visible;
  if (count != full) keys = Keys(a, count, half);
  const Pair pair{half, half == 1 || keys.left > kKeys};
  wait_for_cluster();  // both have begun
  if (keys.begin >= keys.end) {
    wait_for_copies();
    return;
  }

  // 3. All of them at once.
  std::int64_t at = -1;
  if (const int i = keys.begin + lane.own_key(); i < keys.end) {
    at = cache_row(pages, chosen == nullptr ? i : count == full ? ahead : chosen[i]);
  }
  const unsigned barrier = shared + kBarriersAt + lane.warp * 8;
  ask_for_keys<kFp8>(p.cache.rows, at, shared, barrier);
  wait_for_copies();
  __syncthreads();  // queries
  wait_at(barrier);
  if constexpr (kFp8) widen_keys(shared_bytes);
  attend_keys(a, shared_bytes, keys, pair, head_begin);
}

#endif  // STOKER_HAS_CLUSTERS

// A cluster of two blocks per sixteen heads and split of the only row.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) attend_few(AttendLatentParams a) {
#if STOKER_HAS_CLUSTERS
  start_next();
  attend_half<kFp8>(a);
#endif
}

}  // namespace

Result<bool> suits_attend_few(const AttendLatentParams& params) {
  const AttendRowsParams& p = params.rows;
  const std::int64_t most_keys =
      p.sparse ? std::min<std::int64_t>(p.max_visible, p.selection.positions.cols) : p.max_visible;
  if (params.num_rows != 1 || params.split_keys > 2 * kKeys ||
      most_keys > std::int64_t{params.max_splits} * params.split_keys) {
    return false;
  }
  ASSIGN_OR_RETURN(const int major, device_attribute(cudaDevAttrComputeCapabilityMajor));
  ASSIGN_OR_RETURN(const int shared_limit,
                   device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (major < 9 || kSharedBytes > shared_limit) return false;
  // A build for older devices, translated for this one, holds no such kernel.
  cudaFuncAttributes attributes{};
  RETURN_IF_ERROR(cuda_status(cudaFuncGetAttributes(&attributes, attend_few<false>),
                              "attention: the kernel of one row"));
  return attributes.ptxVersion >= 90;
}

Status launch_attend_few(const AttendLatentParams& params, const Stream& stream) {
  auto* const kernel = params.rows.cache.is_fp8() ? attend_few<true> : attend_few<false>;
  RETURN_IF_ERROR(allow_shared(kernel, kSharedBytes));
  LaunchShape shape{dim3(static_cast<unsigned>(params.rows.dims.num_heads / kHeads * 2),
                         static_cast<unsigned>(params.max_splits)),
                    dim3(kThreads), kSharedBytes};
  shape.cluster_blocks = 2;
  return launch_kernel("attend_few", kernel, shape, stream, params);
}

}  // namespace stoker::gpu
