// Queries of the indexer for an FP8 cache: rotated and rounded as keys are.
#include "gpu/error.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// A warp takes a head of a row. Shared memory: [warps, head_dim].
__global__ void __launch_bounds__(kThreads) round_index_queries(IndexQueryParams p) {
  start_next();
  extern __shared__ float shared[];
  const int dim = p.dims.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int head = static_cast<int>(blockIdx.x) * kWarps + warp;
  wait_for_previous();
  if (head >= p.dims.num_heads) return;
  const std::int64_t row = blockIdx.y, col = std::int64_t{head} * dim;
  float* values = shared + warp * dim;
  for (int i = lane; i < dim; i += kWarp) values[i] = load(p.queries, row, col + i);
  rotate_shared(values, dim, lane, kWarp, [] { __syncwarp(); });
  for (int begin = 0; begin < dim; begin += kKvGroup) {
    const float scale = warp_group_scale(values, begin, dim, lane);
    for (int i = begin + lane; i < min(begin + kKvGroup, dim); i += kWarp) {
      store(p.out, row, col + i, quant::kv_rounded(values[i], scale));
    }
  }
}

}  // namespace

Status launch_round_index_queries(const IndexQueryParams& params, const Stream& stream) {
  const IndexQueryParams& p = params;
  CHECK(p.queries.cols == std::int64_t{p.dims.num_heads} * p.dims.head_dim &&
            is_activation(p.queries) && p.out.dtype == DType::kBf16 &&
            p.out.rows == p.queries.rows && p.out.cols == p.queries.cols,
        "indexer of {} heads of {}: {} query columns, {} rounded", p.dims.num_heads,
        p.dims.head_dim, p.queries.cols, p.out.cols);
  if (p.queries.rows == 0) return {};
  const int shared_bytes = kWarps * p.dims.head_dim * static_cast<int>(sizeof(float));
  RETURN_IF_ERROR(allow_shared(round_index_queries, shared_bytes));
  const dim3 grid(blocks_for(p.dims.num_heads, kWarps), static_cast<unsigned>(p.queries.rows));
  return launch_kernel("round_index_queries", round_index_queries,
                       {grid, dim3(kThreads), shared_bytes}, stream, p);
}

}  // namespace stoker::gpu
