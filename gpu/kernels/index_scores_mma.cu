// Scores on tensor cores. A warp keeps 32 keys in registers and takes the heads eight at a time out
// of shared memory. A dot does not care in which order k is walked, so both operands number k such
// that a lane's share of a fragment is 16 neighbouring bytes in memory.
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
constexpr int kLoads = kIndexDim / 32;        // a lane reads 8 of every 32 values of a key
constexpr int kQueryStride = kIndexDim + 32;  // eight lanes read two heads: no bank twice
constexpr int kMostRowsPerBlock = 8;
constexpr int kEnoughBlocks = 1024;

// One block per stretch of positions and few rows; a warp takes kWarpTiles tiles of 16 keys. Shared
// memory: two rows' queries [heads, kQueryStride], then their weights [heads].
template <int kWarpTiles>
__global__ void __launch_bounds__(kThreads, kWarpTiles == 1 ? 3 : 2)
    index_scores_mma(IndexScoreParams p, int rows_per_block) {
  constexpr int kBlockKeys = kWarps * kWarpTiles * kMmaM;
  extern __shared__ __align__(16) bf16 shared_values[];
  const int num_heads = p.dims.num_heads, query_values = num_heads * kQueryStride;
  auto* all_weights = reinterpret_cast<float*>(shared_values + 2 * query_values);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int group = lane / 4, member = lane % 4;  // as in fragments
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
  const auto load_queries = [&](int local_row, int buffer) {
    const std::int64_t row = p.row_begin + local_row;
    const auto* query = static_cast<const bf16*>(p.queries.data) + row * p.queries.row_stride;
    const unsigned to = shared_address(shared_values + buffer * query_values);
    constexpr int kChunks = kIndexDim / kChunk;
    for (int i = thread; i < num_heads * kChunks; i += kThreads) {
      copy_async(to + (i / kChunks * kQueryStride + i % kChunks * kChunk) * 2, query + i * kChunk);
    }
    for (int head = thread; head < num_heads; head += kThreads) {
      all_weights[buffer * num_heads + head] = load(p.weights, row, head);
    }
  };
  uint4 keys[kWarpTiles][2][kLoads];
  int held_sequence = -1, held_end = 0;  // whose keys are in registers, up to which position
  int local_row = scored_row(static_cast<int>(blockIdx.y) * rows_per_block);
  if (local_row < row_end) load_queries(local_row, 0);
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
          const int position = begin + m * kMmaM + half * 8 + group;
          const std::int64_t at = cache_row(pages, min(position, visible - 1));
          const auto* key = reinterpret_cast<const uint4*>(static_cast<const bf16*>(p.cache.data) +
                                                           at * p.cache.row_stride);
#pragma unroll
          for (int i = 0; i < kLoads; ++i) keys[m][half][i] = __ldg(key + 4 * i + member);
        }
      }
    }

    // 2. Queries: this row's have come, the next row's may come where those before were.
    wait_for_copies();
    __syncthreads();
    const int next_row = scored_row(local_row + 1);
    if (next_row < row_end) load_queries(next_row, 1 - buffer);
    const bf16* queries = shared_values + buffer * query_values;
    const float* weights = all_weights + buffer * num_heads;

    // 3. Eight heads at a time.
    float scores[kWarpTiles][2] = {};
#pragma unroll 2
    for (int n = 0; n < num_heads; n += kMmaN) {
      float dots[kWarpTiles][4] = {};
      const auto* head = reinterpret_cast<const uint4*>(queries + (n + group) * kQueryStride);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const uint4 q = head[4 * i + member];
#pragma unroll
        for (int m = 0; m < kWarpTiles; ++m) {
          const uint4 &low = keys[m][0][i], &high = keys[m][1][i];
          const unsigned first[4] = {low.x, high.x, low.y, high.y};
          const unsigned second[4] = {low.z, high.z, low.w, high.w};
          mma(dots[m], first, q.x, q.y);
          mma(dots[m], second, q.z, q.w);
        }
      }
      const float2 weight = *reinterpret_cast<const float2*>(weights + n + 2 * member);
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = scores[m][half];
          score = __fmaf_rn(fmaxf(dots[m][2 * half], 0.0f), weight.x, score);
          score = __fmaf_rn(fmaxf(dots[m][2 * half + 1], 0.0f), weight.y, score);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float score = scores[m][half];
        score += __shfl_xor_sync(kAllLanes, score, 1);
        score += __shfl_xor_sync(kAllLanes, score, 2);
        const int position = begin + m * kMmaM + half * 8 + group;
        if (member == 0 && position < visible) {
          p.scores[local_row * p.score_stride + position] = score;
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
  // A few rows want many loads under way; many rows of one sequence share the reading of its keys,
  // and the reading of a query by more keys.
  constexpr int kFew = 4;
  const auto launch = [&](auto* kernel, int warp_tiles) -> Status {
    const unsigned stretches = blocks_for(p.max_visible, kWarps * warp_tiles * kMmaM);
    const int rows_per_block =
        std::clamp(static_cast<int>(stretches) * p.num_rows / kEnoughBlocks, 1, kMostRowsPerBlock);
    const int shared_bytes =
        2 * p.dims.num_heads *
        (kQueryStride * static_cast<int>(sizeof(bf16)) + static_cast<int>(sizeof(float)));
    RETURN_IF_ERROR(cuda_status(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "indexer: shared memory for two rows' queries"));
    const dim3 grid(stretches, blocks_for(p.num_rows, rows_per_block));
    kernel<<<grid, kThreads, shared_bytes, native(stream)>>>(p, rows_per_block);
    return launch_status("index_scores_mma");
  };
  return p.num_rows <= kFew ? launch(index_scores_mma<1>, 1) : launch(index_scores_mma<2>, 2);
}

}  // namespace stoker::gpu
