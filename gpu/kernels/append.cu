#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) append(AppendParams p) {
  start_next();
  const std::int64_t row = blockIdx.x;
  wait_for_previous();
  append_row(p, place_of(p, row), MemoryRow{p.x, row});
}

// One block per row. Shared memory: its values.
__global__ void __launch_bounds__(kThreads) append_fp8(AppendParams p) {
  start_next();
  extern __shared__ float values[];
  const std::int64_t row = blockIdx.x;
  wait_for_previous();
  stage_row(p.x, row, values);
  __syncthreads();
  append_row_fp8(p, place_of(p, row), values);
}

}  // namespace

Status launch_append(const AppendParams& params, const Stream& stream) {
  const AppendParams& p = params;
  check_append(p);
  if (p.x.rows == 0) return {};
  const dim3 blocks(static_cast<unsigned>(p.x.rows));
  if (!p.cache.is_fp8()) {
    return launch_kernel("append", append, {blocks, dim3(kThreads)}, stream, p);
  }
  const int shared_bytes = static_cast<int>(p.x.cols * static_cast<std::int64_t>(sizeof(float)));
  RETURN_IF_ERROR(allow_shared(append_fp8, shared_bytes));
  return launch_kernel("append_fp8", append_fp8, {blocks, dim3(kThreads), shared_bytes}, stream, p);
}

}  // namespace stoker::gpu
