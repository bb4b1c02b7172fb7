// Scores for any dimensions and types.
#include "gpu/error.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/index_scores_mma.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kPositionsPerBlock = 64;

// One block per row and stretch of positions. Queries lie in shared memory; a warp takes a position
// at a time and a lane some heads, so only the sum over heads crosses lanes.
__global__ void __launch_bounds__(kThreads) index_scores(IndexScoreParams p) {
  start_next();
  extern __shared__ float shared[];
  const int num_heads = p.dims.num_heads, dim = p.dims.head_dim;
  const int stride = dim + 1;  // lanes read one column of many heads: no bank twice
  float* queries = shared;
  float* keys = queries + num_heads * stride;  // [warps, dim]
  const std::int64_t row = p.row_begin + blockIdx.y;
  wait_for_previous();
  const int visible = p.step.positions[row] + 1;
  const int begin = static_cast<int>(blockIdx.x) * kPositionsPerBlock;
  if (visible <= p.dims.top_k || begin >= visible) return;
  for (int i = static_cast<int>(threadIdx.x); i < num_heads * dim; i += kThreads) {
    queries[i / dim * stride + i % dim] = load(p.queries, blockIdx.y, i);
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float* key = keys + warp * dim;
  const std::int32_t* pages = p.step.index_pages + p.step.index_first[row];
  const int end = min(begin + kPositionsPerBlock, visible);
  for (int position = begin + warp; position < end; position += kThreads / kWarp) {
    const std::int64_t at = cache_row(pages, position);
    __syncwarp();
    for (int d = lane; d < dim; d += kWarp) key[d] = load_cached(p.cache, at, d);
    __syncwarp();
    float score = 0.0f;
    for (int head = lane; head < num_heads; head += kWarp) {
      float dot = 0.0f;
      for (int d = 0; d < dim; ++d) dot = __fmaf_rn(queries[head * stride + d], key[d], dot);
      score = __fmaf_rn(fmaxf(dot, 0.0f), load(p.weights, blockIdx.y, head), score);
    }
    score = warp_sum(score);
    if (lane == 0) p.scores[blockIdx.y * p.score_stride + position] = score;
  }
}

}  // namespace

Status launch_index_scores(const IndexScoreParams& params, const Stream& stream) {
  const IndexScoreParams& p = params;
  CHECK(p.queries.cols == std::int64_t{p.dims.num_heads} * p.dims.head_dim &&
            holds(p.cache, index_key_row(p.dims)) && p.weights.cols == p.dims.num_heads &&
            p.queries.rows == p.num_rows && p.weights.rows == p.num_rows,
        "indexer of {} heads of {}: {} query columns, {} cache columns, {} weights",
        p.dims.num_heads, p.dims.head_dim, p.queries.cols, p.cache.rows.cols, p.weights.cols);
  if (p.num_rows == 0 || p.max_visible <= p.dims.top_k) return {};
  if (scores_on_tensor_cores(p)) return launch_index_scores_mma(p, stream);
  const int shared_bytes =
      (p.dims.num_heads * (p.dims.head_dim + 1) + kThreads / kWarp * p.dims.head_dim) *
      static_cast<int>(sizeof(float));
  RETURN_IF_ERROR(
      cuda_status(cudaFuncSetAttribute(index_scores, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       shared_bytes),
                  "indexer: shared memory for the queries"),
      "{} bytes", shared_bytes);
  const dim3 grid(blocks_for(p.max_visible, kPositionsPerBlock), static_cast<unsigned>(p.num_rows));
  return launch_kernel("index_scores", index_scores, {grid, dim3(kThreads), shared_bytes}, stream,
                       p);
}

}  // namespace stoker::gpu
