#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

// One thread per pair of one head; grid.x is the row.
__global__ void __launch_bounds__(kThreads) rope(RopeParams p) {
  start_next();
  const int index = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  wait_for_previous();
  const std::int64_t row = blockIdx.x;
  if (index < num_pairs(p)) rope_pair(p, row, index, MemoryRow{p.x, row});
}

}  // namespace

Status launch_rope(const RopeParams& params, const Stream& stream) {
  const RopeParams& p = params;
  check_rope(p);
  if (p.x.rows == 0 || p.rope_dim == 0) return {};
  const dim3 grid(static_cast<unsigned>(p.x.rows), blocks_for(num_pairs(p), kThreads));
  return launch_kernel("rope", rope, {grid, dim3(kThreads)}, stream, p);
}

}  // namespace stoker::gpu
