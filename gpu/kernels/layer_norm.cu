#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

__global__ void __launch_bounds__(kNormThreads) layer_norm(LayerNormParams p) {
  start_next();
  __shared__ float scratch[kNormThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  prefetch_block(p.weight.data, static_cast<int>(p.x.cols * 4));
  prefetch_block(p.bias.data, static_cast<int>(p.x.cols * 4));
  wait_for_previous();
  layer_norm_row(p, MemoryRow{p.x, row}, scratch);
}

}  // namespace

Status launch_layer_norm(const LayerNormParams& params, const Stream& stream) {
  const LayerNormParams& p = params;
  check_layer_norm(p);
  if (p.x.rows == 0) return {};
  return launch_kernel("layer_norm", layer_norm,
                       {dim3(static_cast<unsigned>(p.x.rows)), dim3(kNormThreads)}, stream, p);
}

}  // namespace stoker::gpu
