#include <cuda_runtime.h>

#include "gpu/kernels/common/overlap.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// What earlier kernels wrote to host memory is there before the number is.
__global__ void count_up(CountUpParams p) {
  start_next();
  wait_for_previous();
  const std::uint64_t count = *p.count + 1;
  *p.count = count;
  __threadfence_system();
  *static_cast<volatile std::uint64_t*>(p.word) = count;
}

}  // namespace

Status launch_count_up(const CountUpParams& params, const Stream& stream) {
  return launch_kernel("count_up", count_up, {dim3(1), dim3(1)}, stream, params);
}

}  // namespace stoker::gpu
