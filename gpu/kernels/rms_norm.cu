#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;

// One block per row. Every element is read and written by one thread, so `out` may be `x`.
__global__ void __launch_bounds__(kThreads) rms_norm(RmsNormParams p) {
  start_next();
  __shared__ float scratch[kThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  prefetch_block(p.weight.data, static_cast<int>(p.x.cols * 4));
  wait_for_previous();
  const auto sum_at = [&](std::int64_t col) {
    const float x = load(p.x, row, col);
    return p.residual_use == ResidualUse::kAdd ? x + load(p.residual, row, col) : x;
  };
  float squares = 0.0f;
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    const float s = sum_at(col);
    squares = __fmaf_rn(s, s, squares);
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(p.x.cols);
  const float factor = 1.0f / sqrtf(mean + p.eps);
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    const float s = sum_at(col);
    if (p.residual_use != ResidualUse::kNone) store(p.residual, row, col, s);
    store(p.out, row, col, s * factor * load(p.weight, 0, col));
  }
}

}  // namespace

Status launch_rms_norm(const RmsNormParams& params, const Stream& stream) {
  const RmsNormParams& p = params;
  CHECK(is_activation(p.x) && is_activation(p.out), "rms_norm of {} to {}", dtype_name(p.x.dtype),
        dtype_name(p.out.dtype));
  CHECK(p.out.rows == p.x.rows && p.out.cols == p.x.cols && p.weight.cols == p.x.cols &&
            p.weight.dtype == DType::kF32,
        "rms_norm of [{}, {}] with {} weights", p.x.rows, p.x.cols, p.weight.cols);
  CHECK(p.residual_use == ResidualUse::kNone ||
            (p.residual.rows == p.x.rows && p.residual.cols == p.x.cols),
        "residual [{}, {}]", p.residual.rows, p.residual.cols);
  if (p.x.rows == 0) return {};
  return launch_kernel("rms_norm", rms_norm,
                       {dim3(static_cast<unsigned>(p.x.rows)), dim3(kThreads)}, stream, p);
}

}  // namespace stoker::gpu
