// Scores on tensor cores. A warp keeps keys in registers and takes the heads eight at a time out of
// shared memory. A dot does not care in which order k is walked, so both operands number k such
// that a lane's share of a fragment is 16 neighbouring bytes in memory.
//
// Two kernels with one arithmetic: where a row is alone, keys are read as a stream; where rows may
// share a sequence, keys stay while row after row passes.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/index_scores_mma.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWarpTiles = 2;  // of 16 keys that a warp holds
constexpr int kBlockKeys = kWarps * kWarpTiles * kMmaM;
constexpr int kLoads = kIndexDim / 32;        // a lane reads 8 of every 32 values of a key
constexpr int kQueryStride = kIndexDim + 32;  // eight lanes read two heads: no bank twice
constexpr int kMostRowsPerBlock = 8;
constexpr int kEnoughBlocks = 1024;

struct Lane {
  int group, member;  // as in fragments
};
__device__ Lane this_lane() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return {lane / 4, lane % 4};
}

// A row's queries to `to` [heads, kQueryStride], after wait_for_copies(), and its weights.
__device__ void load_queries(const IndexScoreParams& p, std::int64_t row, bf16* to,
                             float* weights) {
  constexpr int kChunks = kIndexDim / kChunk;
  const auto* query = static_cast<const bf16*>(p.queries.data) + row * p.queries.row_stride;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < p.dims.num_heads * kChunks; i += kThreads) {
    copy_async(shared_address(to + i / kChunks * kQueryStride + i % kChunks * kChunk),
               query + i * kChunk);
  }
  for (int head = thread; head < p.dims.num_heads; head += kThreads) {
    weights[head] = load(p.weights, row, head);
  }
}

// This lane's share of the key at `key`.
__device__ void load_key(const bf16* key, uint4 (&out)[kLoads]) {
  const auto* chunks = reinterpret_cast<const uint4*>(key) + this_lane().member;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) out[i] = __ldg(chunks + 4 * i);
}

// Scores of keys `group` and `group + 8` of each tile, the same for all members of the group.
template <int kTiles>
__device__ void score_keys(const uint4 (&keys)[kTiles][2][kLoads], const bf16* queries,
                           const float* weights, int num_heads, float (&scores)[kTiles][2]) {
  const Lane lane = this_lane();
#pragma unroll
  for (auto& score : scores) score[0] = score[1] = 0.0f;
#pragma unroll(4 / kTiles)
  for (int n = 0; n < num_heads; n += kMmaN) {
    float dots[kTiles][4] = {};
    const auto* head = reinterpret_cast<const uint4*>(queries + (n + lane.group) * kQueryStride);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint4 q = head[4 * i + lane.member];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const uint4 &low = keys[m][0][i], &high = keys[m][1][i];
        const unsigned first[4] = {low.x, high.x, low.y, high.y};
        const unsigned second[4] = {low.z, high.z, low.w, high.w};
        mma(dots[m], first, q.x, q.y);
        mma(dots[m], second, q.z, q.w);
      }
    }
    const float2 weight = *reinterpret_cast<const float2*>(weights + n + 2 * lane.member);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& score = scores[m][half];
        score = __fmaf_rn(fmaxf(dots[m][2 * half], 0.0f), weight.x, score);
        score = __fmaf_rn(fmaxf(dots[m][2 * half + 1], 0.0f), weight.y, score);
      }
    }
  }
#pragma unroll
  for (auto& score : scores) {
#pragma unroll
    for (float& sum : score) {
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
    }
  }
}

// One block per row and stretch of positions; a warp takes a page. Shared memory: queries [heads,
// kQueryStride], weights [heads].
__global__ void __launch_bounds__(kThreads, 2) stream_scores(IndexScoreParams p) {
  extern __shared__ __align__(16) bf16 shared_values[];
  auto* weights = reinterpret_cast<float*>(shared_values + p.dims.num_heads * kQueryStride);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane = this_lane();
  const std::int64_t row = p.row_begin + blockIdx.y;
  const int visible = p.step.positions[row] + 1;
  const int page = static_cast<int>(blockIdx.x) * kWarps + warp;
  const bool any = page * kPageTokens < visible;
  if (visible <= max(p.dims.top_k, (page - warp) * kPageTokens)) return;
  constexpr int kTiles = kPageTokens / kMmaM;
  const auto* cache = static_cast<const bf16*>(p.cache.data);
  const std::int64_t first =
      any ? cache_row(p.step.index_pages + p.step.index_first[row], page * kPageTokens) : 0;
  // Rows of the page behind the last position hold nothing, but can be read.
  uint4 keys[2][1][2][kLoads];  // a tile ahead
  const auto load_tile = [&](int tile, uint4(&out)[1][2][kLoads]) {
    const bf16* key = cache + (first + tile * kMmaM + lane.group) * p.cache.row_stride;
    load_key(key, out[0][0]);
    load_key(key + 8 * p.cache.row_stride, out[0][1]);
  };
  load_tile(0, keys[0]);
  load_queries(p, row, shared_values, weights);
  wait_for_copies();
  __syncthreads();
  if (!any) return;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile + 1 < kTiles) load_tile(tile + 1, keys[(tile + 1) % 2]);
    float scores[1][2];
    score_keys(keys[tile % 2], shared_values, weights, p.dims.num_heads, scores);
    const int position = page * kPageTokens + tile * kMmaM + lane.group;
    if (lane.member > 1) continue;
    const int mine = position + 8 * lane.member;
    if (mine < visible) {
      p.scores[blockIdx.y * p.score_stride + mine] = lane.member == 0 ? scores[0][0] : scores[0][1];
    }
  }
}

// One block per stretch of positions and few rows. Shared memory: two rows' queries [heads,
// kQueryStride], then their weights [heads].
__global__ void __launch_bounds__(kThreads, 2)
    hold_keys_and_score(IndexScoreParams p, int rows_per_block) {
  extern __shared__ __align__(16) bf16 shared_values[];
  const int num_heads = p.dims.num_heads, query_values = num_heads * kQueryStride;
  auto* all_weights = reinterpret_cast<float*>(shared_values + 2 * query_values);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane = this_lane();
  const int block_begin = static_cast<int>(blockIdx.x) * kBlockKeys;
  const int begin = block_begin + warp * kWarpTiles * kMmaM;
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
    load_queries(p, p.row_begin + local_row, shared_values + buffer * query_values,
                 all_weights + buffer * num_heads);
  };
  uint4 keys[kWarpTiles][2][kLoads];
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
      for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int position = begin + m * kMmaM + half * 8 + lane.group;
          const std::int64_t at = cache_row(pages, min(position, visible - 1));
          load_key(static_cast<const bf16*>(p.cache.data) + at * p.cache.row_stride, keys[m][half]);
        }
      }
    }

    // 2. Queries: this row's have come, the next row's may come where those before were.
    wait_for_copies();
    __syncthreads();
    const int next_row = scored_row(local_row + 1);
    if (next_row < row_end) load_row(next_row, 1 - buffer);
    float scores[kWarpTiles][2];
    score_keys(keys, shared_values + buffer * query_values, all_weights + buffer * num_heads,
               num_heads, scores);
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int position = begin + m * kMmaM + half * 8 + lane.group;
        if (lane.member == 0 && position < visible) {
          p.scores[local_row * p.score_stride + position] = scores[m][half];
        }
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
  return p.queries.dtype == DType::kBf16 && p.cache.dtype == DType::kBf16 &&
         p.dims.head_dim == kIndexDim && p.dims.num_heads % kMmaN == 0 &&
         p.dims.num_heads <= kMostIndexHeads && is_aligned(p.queries) && is_aligned(p.cache);
}

Status launch_index_scores_mma(const IndexScoreParams& params, const Stream& stream) {
  const IndexScoreParams& p = params;
  const int row_bytes = p.dims.num_heads * (kQueryStride * static_cast<int>(sizeof(bf16)) +
                                            static_cast<int>(sizeof(float)));
  const auto allow = [](auto* kernel, int shared_bytes) {
    return cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "indexer: shared memory for queries");
  };
  if (p.num_rows == 1) {
    RETURN_IF_ERROR(allow(stream_scores, row_bytes));
    const dim3 grid(blocks_for(p.max_visible, kWarps * kPageTokens),
                    static_cast<unsigned>(p.num_rows));
    stream_scores<<<grid, kThreads, row_bytes, native(stream)>>>(p);
    return launch_status("stream_scores");
  }
  RETURN_IF_ERROR(allow(hold_keys_and_score, 2 * row_bytes));
  const unsigned stretches = blocks_for(p.max_visible, kBlockKeys);
  const int rows_per_block =
      std::clamp(static_cast<int>(stretches) * p.num_rows / kEnoughBlocks, 1, kMostRowsPerBlock);
  const dim3 grid(stretches, blocks_for(p.num_rows, rows_per_block));
  hold_keys_and_score<<<grid, kThreads, 2 * row_bytes, native(stream)>>>(p, rows_per_block);
  return launch_status("hold_keys_and_score");
}

}  // namespace stoker::gpu
