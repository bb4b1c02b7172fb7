// Scores on tensor cores. A warp keeps keys in registers and takes the heads sixteen at a time out
// of shared memory. A dot does not care in which order k is walked, so k is numbered such that a
// lane's share of a key is 16 neighbouring bytes, and the queries lie in shared memory as
// fragments.
//
// Two kernels with one arithmetic: where a row is alone, keys are read as a stream; where rows may
// share a sequence, keys stay while row after row passes.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/index_scores_mma.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWarpTiles = 4;  // of 8 keys that a warp holds
constexpr int kBlockKeys = kWarps * kWarpTiles * kMmaN;
constexpr int kLoads = kIndexDim / 32;  // a lane reads 8 of every 32 values of a key
constexpr int kMostRowsPerBlock = 8;
constexpr int kEnoughBlocks = 1024;

// Where chunk `chunk` of a head's query lies in shared memory, [heads, chunks]: every other head
// has its chunks in other places, so that no bank is read twice.
__device__ int query_place(int head, int chunk) {
  return head * (kIndexDim / kChunk) + (chunk ^ head % 2 * 4);
}

// A row's queries to `to`, after wait_for_copies(), and its weights.
__device__ void load_queries(const IndexScoreParams& p, std::int64_t row, uint4* to,
                             float* weights) {
  constexpr int kChunks = kIndexDim / kChunk;
  const int thread = static_cast<int>(threadIdx.x);
  const auto* query =
      static_cast<const bf16*>(p.queries.data) + row * p.queries.row_stride + thread * kChunk;
  const int head = thread / kChunks, chunk = thread % kChunks;
  static_assert(kThreads == kMmaM * kChunks);
  const unsigned first = shared_address(to + query_place(head, chunk));
  for (int tile = 0; tile < p.dims.num_heads / kMmaM; ++tile) {
    copy_async(first + tile * kThreads * kChunkBytes, query + tile * kThreads * kChunk);
  }
  const auto* weight = static_cast<const float*>(p.weights.data) + row * p.weights.row_stride;
  for (int i = thread; i < p.dims.num_heads; i += kThreads) {
    copy_word_async(shared_address(weights + i), weight + i);
  }
}

// This lane's share of a cached key, as it lies there.
template <bool kFp8>
struct CachedKey;

template <>
struct CachedKey<false> {
  uint4 chunks[kLoads];

  __device__ void load(const TensorView& cache, std::int64_t row) {
    const auto* key = static_cast<const bf16*>(cache.data) + row * cache.row_stride;
    const auto* from = reinterpret_cast<const uint4*>(key) + fragment_lane().member;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) chunks[i] = from[4 * i];
  }
  __device__ void widen(uint4 (&out)[kLoads]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) out[i] = chunks[i];
  }
};

template <>
struct CachedKey<true> {
  uint2 codes[kLoads];
  float scale;

  __device__ void load(const TensorView& cache, std::int64_t row) {
    const auto* key = reinterpret_cast<const unsigned*>(static_cast<const std::byte*>(cache.data) +
                                                        row * cache.row_stride);
    const auto* from = key + 2 * fragment_lane().member;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) codes[i] = {from[8 * i], from[8 * i + 1]};
    scale = __uint_as_float(key[kIndexDim / 4]);
  }
  __device__ void widen(uint4 (&out)[kLoads]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) out[i] = widen_codes(codes[i], scale);
  }
};
static_assert(quant::kv_row_layout({kIndexDim, 0}).scales_at == kIndexDim && kIndexDim == kKvGroup);

// Scores of keys 2 * member and 2 * member + 1 of each tile, where keys[tile] is this lane's share
// of the tile's key `group`.
template <int kTiles>
__device__ void score_keys(const uint4 (&keys)[kTiles][kLoads], const uint4* queries,
                           const float* weights, int num_heads, float (&scores)[kTiles][2]) {
  const FragmentLane lane = fragment_lane();
  const int even_at = lane.group % 2 * 4, odd_at = 4 - even_at;  // of chunks that are swapped
#pragma unroll
  for (auto& score : scores) score[0] = score[1] = 0.0f;
#pragma unroll(4 / kTiles)
  for (int head = 0; head < num_heads; head += kMmaM) {
    float dots[kTiles][4] = {};
    const uint4* rows = queries + (head + lane.group) * (kIndexDim / kChunk) + lane.member;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      // Chunk 4 * i of heads `group` and `group` + 8, which are both even or both odd.
      const uint4* at = rows + 4 * (i / 2 * 2) + (i % 2 == 0 ? even_at : odd_at);
      const uint4 low = at[0], high = at[8 * (kIndexDim / kChunk)];
      const unsigned first[4] = {low.x, high.x, low.y, high.y};
      const unsigned second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) mma(dots[n], first, keys[n][i].x, keys[n][i].y);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) mma(dots[n], second, keys[n][i].z, keys[n][i].w);
    }
    const float low = weights[head + lane.group], high = weights[head + lane.group + 8];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores[n][i] = __fmaf_rn(fmaxf(dots[n][i], 0.0f), low, scores[n][i]);
        scores[n][i] = __fmaf_rn(fmaxf(dots[n][2 + i], 0.0f), high, scores[n][i]);
      }
    }
  }
#pragma unroll
  for (auto& score : scores) {
#pragma unroll
    for (float& sum : score) {
      sum += __shfl_xor_sync(kAllLanes, sum, 4);
      sum += __shfl_xor_sync(kAllLanes, sum, 8);
      sum += __shfl_xor_sync(kAllLanes, sum, 16);
    }
  }
}

// One block per stretch of the only row's positions; a warp takes kTurns times kTurnTiles tiles of
// a page. Shared memory: queries, weights [heads].
template <bool kFp8, int kTurns, int kTurnTiles>
__global__ void __launch_bounds__(kThreads, 2) stream_scores(IndexScoreParams p) {
  start_next();
  extern __shared__ uint4 queries[];
  auto* weights = reinterpret_cast<float*>(queries + p.dims.num_heads * kIndexDim / kChunk);
  constexpr int kWarpKeys = kTurns * kTurnTiles * kMmaN, kAhead = kTurns < 2 ? kTurns : 2;
  static_assert(kPageTokens % kWarpKeys == 0);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane_of_warp = static_cast<int>(threadIdx.x) % kWarp;
  const FragmentLane lane = fragment_lane();
  const std::int64_t row = p.row_begin;
  // What no kernel writes: the step's tables.
  const int visible = __ldcg(p.step.positions + row) + 1;
  const int sequence = __ldcg(p.step.index_first + row);
  const int begin = (static_cast<int>(blockIdx.x) * kWarps + warp) * kWarpKeys;
  // Rows of the page behind the last position hold nothing, but can be read.
  const int page = min(begin, visible - 1) / kPageTokens;
  const std::int64_t first =
      std::int64_t{__ldcg(p.step.index_pages + sequence + page)} * kPageTokens +
      begin % kPageTokens;
  // The kernel before may be writing the last of them, so they are asked for and not yet read.
  for (int i = lane_of_warp; i < 2 * kWarpKeys; i += kWarp) {
    const TensorView& rows = p.cache.rows;
    constexpr int kElement = kFp8 ? 1 : 2;
    const auto* key =
        static_cast<const std::byte*>(rows.data) + (first + i / 2) * rows.row_stride * kElement;
    prefetch_line(key + i % 2 * (rows.cols * kElement - 1));
  }
  CachedKey<kFp8> cached[kAhead][kTurnTiles];
  const auto load_turn = [&](int turn, CachedKey<kFp8>(&out)[kTurnTiles]) {
#pragma unroll
    for (int n = 0; n < kTurnTiles; ++n) {
      const std::int64_t at = first + (turn * kTurnTiles + n) * kMmaN + lane.group;
      out[n].load(p.cache.rows, at);
    }
  };
  wait_for_previous();
  if (static_cast<int>(blockIdx.x) * kWarps * kWarpKeys >= visible) return;
#pragma unroll
  for (int turn = 0; turn < kAhead; ++turn) load_turn(turn, cached[turn]);
  load_queries(p, 0, queries, weights);
  wait_for_copies();
  __syncthreads();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    uint4 keys[kTurnTiles][kLoads];
#pragma unroll
    for (int n = 0; n < kTurnTiles; ++n) cached[turn % kAhead][n].widen(keys[n]);
    float scores[kTurnTiles][2];
    score_keys(keys, queries, weights, p.dims.num_heads, scores);
    if (turn + kAhead < kTurns) load_turn(turn + kAhead, cached[turn % kAhead]);
    if (lane.group >= kTurnTiles) continue;  // one group stores one tile
    const int tile = turn * kTurnTiles + lane.group;
    const int position = begin + tile * kMmaN + 2 * lane.member;
    float* out = p.scores + position;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float score = lane.group == 0 ? scores[0][i] : scores[kTurnTiles - 1][i];
      if (position + i < visible) out[i] = score;
    }
  }
}

// One block per stretch of positions and few rows. Shared memory: two rows' queries, then their
// weights [heads].
template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 2)
    hold_keys_and_score(IndexScoreParams p, int rows_per_block) {
  start_next();
  extern __shared__ uint4 queries[];
  const int num_heads = p.dims.num_heads, row_fragments = num_heads * kIndexDim / kChunk;
  auto* all_weights = reinterpret_cast<float*>(queries + 2 * row_fragments);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const FragmentLane lane = fragment_lane();
  const int block_begin = static_cast<int>(blockIdx.x) * kBlockKeys;
  const int begin = block_begin + warp * kWarpTiles * kMmaN;
  const int row_end = min((static_cast<int>(blockIdx.y) + 1) * rows_per_block, p.num_rows);
  const auto visible_to = [&](int local_row) {
    return p.step.positions[p.row_begin + local_row] + 1;
  };
  // The first of those from local_row on that has scores in this stretch.
  const auto scored_row = [&](int local_row) {
    while (local_row < row_end && visible_to(local_row) <= max(p.dims.top_k, block_begin)) {
      ++local_row;
    }
    return local_row;
  };
  const auto load_row = [&](int local_row, int buffer) {
    load_queries(p, local_row, queries + buffer * row_fragments, all_weights + buffer * num_heads);
  };
  uint4 keys[kWarpTiles][kLoads];
  wait_for_previous();
  int held_sequence = -1, held_end = 0;  // whose keys are in registers, up to which position
  int local_row = scored_row(static_cast<int>(blockIdx.y) * rows_per_block);
  if (local_row < row_end) load_row(local_row, 0);
  for (int buffer = 0; local_row < row_end; buffer = 1 - buffer) {
    const std::int64_t row = p.row_begin + local_row;
    const int visible = visible_to(local_row);

    // 1. Keys, unless an earlier row of the sequence left them here.
    const int sequence = p.step.index_first[row];
    const int needed = min(visible, block_begin + kBlockKeys);
    if (sequence != held_sequence || needed > held_end) {
      held_sequence = sequence;
      held_end = needed;
      const std::int32_t* pages = p.step.index_pages + sequence;
#pragma unroll
      for (int n = 0; n < kWarpTiles; ++n) {
        const int position = begin + n * kMmaN + lane.group;
        const std::int64_t at = cache_row(pages, min(position, visible - 1));
        CachedKey<kFp8> cached;
        cached.load(p.cache.rows, at);
        cached.widen(keys[n]);
      }
    }

    // 2. Queries: this row's have come, the next row's may come where those before were.
    wait_for_copies();
    __syncthreads();
    const int next_row = scored_row(local_row + 1);
    if (next_row < row_end) load_row(next_row, 1 - buffer);
    float scores[kWarpTiles][2];
    score_keys(keys, queries + buffer * row_fragments, all_weights + buffer * num_heads, num_heads,
               scores);
#pragma unroll
    for (int n = 0; n < kWarpTiles; ++n) {
      const int position = begin + n * kMmaN + 2 * lane.member;
      float* out = p.scores + local_row * p.score_stride + position;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane.group == n && position + i < visible) out[i] = scores[n][i];
      }
    }
    local_row = next_row;
  }
}

bool is_aligned(const TensorView& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.row_stride % 8 == 0;
}

}  // namespace

bool scores_on_tensor_cores(const IndexScoreParams& params) {
  const IndexScoreParams& p = params;
  const TensorView& rows = p.cache.rows;
  const bool takes_cache =
      p.cache.is_fp8()
          ? reinterpret_cast<std::uintptr_t>(rows.data) % 4 == 0 && rows.row_stride % 4 == 0
          : rows.dtype == DType::kBf16 && is_aligned(rows);
  return p.queries.dtype == DType::kBf16 && takes_cache && p.weights.dtype == DType::kF32 &&
         p.dims.head_dim == kIndexDim && p.dims.num_heads % kMmaM == 0 &&
         p.dims.num_heads <= kMostIndexHeads && is_aligned(p.queries);
}

Status launch_index_scores_mma(const IndexScoreParams& params, const Stream& stream) {
  const IndexScoreParams& p = params;
  const int row_bytes = p.dims.num_heads * (kIndexDim * static_cast<int>(sizeof(bf16)) +
                                            static_cast<int>(sizeof(float)));
  const auto allow = [](auto* kernel, int shared_bytes) {
    return cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "indexer: shared memory for queries");
  };
  if (p.num_rows == 1) {
    ASSIGN_OR_RETURN(const int num_sms, device_attribute(cudaDevAttrMultiProcessorCount));
    const auto launch = [&]<int kTurns, int kTurnTiles>() -> Status {
      constexpr int kBlockKeysOfOne = kWarps * kTurns * kTurnTiles * kMmaN;
      auto* const kernel = p.cache.is_fp8() ? stream_scores<true, kTurns, kTurnTiles>
                                            : stream_scores<false, kTurns, kTurnTiles>;
      RETURN_IF_ERROR(allow(kernel, row_bytes));
      const unsigned stretches = blocks_for(p.max_visible, kBlockKeysOfOne);
      return launch_kernel("stream_scores", kernel, {dim3(stretches), dim3(kThreads), row_bytes},
                           stream, p);
    };
    // As few keys a warp as leave every multiprocessor a block.
    const int tiles = p.max_visible / (num_sms * kWarps * kMmaN);
    if (tiles < 1) return launch.operator()<1, 1>();
    if (tiles < 2) return launch.operator()<1, 2>();
    if (tiles < 4) return launch.operator()<2, 2>();
    return launch.operator()<4, 2>();
  }
  auto* const kernel = p.cache.is_fp8() ? hold_keys_and_score<true> : hold_keys_and_score<false>;
  RETURN_IF_ERROR(allow(kernel, 2 * row_bytes));
  const unsigned stretches = blocks_for(p.max_visible, kBlockKeys);
  const int rows_per_block =
      std::clamp(static_cast<int>(stretches) * p.num_rows / kEnoughBlocks, 1, kMostRowsPerBlock);
  const dim3 grid(stretches, blocks_for(p.num_rows, rows_per_block));
  return launch_kernel("hold_keys_and_score", kernel, {grid, dim3(kThreads), 2 * row_bytes}, stream,
                       p, rows_per_block);
}

}  // namespace stoker::gpu
