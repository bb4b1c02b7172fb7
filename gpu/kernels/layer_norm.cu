#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) layer_norm(LayerNormParams p) {
  start_next();
  __shared__ float scratch[kThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  prefetch_block(p.weight.data, static_cast<int>(p.x.cols * 4));
  prefetch_block(p.bias.data, static_cast<int>(p.x.cols * 4));
  wait_for_previous();
  const auto count = static_cast<float>(p.x.cols);
  float sum = 0.0f;
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) sum += load(p.x, row, col);
  const float mean = block_sum(sum, scratch) / count;
  float squares = 0.0f;
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    const float d = load(p.x, row, col) - mean;
    squares = __fmaf_rn(d, d, squares);
  }
  const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / count + p.eps);
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    const float normal = (load(p.x, row, col) - mean) * factor;
    store(p.x, row, col, normal * load(p.weight, 0, col) + load(p.bias, 0, col));
  }
}

}  // namespace

Status launch_layer_norm(const LayerNormParams& params, const Stream& stream) {
  const LayerNormParams& p = params;
  CHECK(is_activation(p.x) && p.weight.cols == p.x.cols && p.bias.cols == p.x.cols,
        "layer_norm of {} columns with {} weights and {} biases", p.x.cols, p.weight.cols,
        p.bias.cols);
  if (p.x.rows == 0) return {};
  return launch_kernel("layer_norm", layer_norm,
                       {dim3(static_cast<unsigned>(p.x.rows)), dim3(kThreads)}, stream, p);
}

}  // namespace stoker::gpu
