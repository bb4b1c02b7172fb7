#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// One block per row. `out` may be `x`.
__global__ void __launch_bounds__(kNormThreads) rms_norm(RmsNormParams p) {
  start_next();
  __shared__ float scratch[kNormThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  prefetch_block(p.weight.data, static_cast<int>(p.x.cols * 4));
  wait_for_previous();
  const auto sum_at = [&](std::int64_t col) {
    const float x = load(p.x, row, col);
    return p.residual_use == ResidualUse::kAdd ? x + load(p.residual, row, col) : x;
  };
  rms_norm_row(p, scratch, sum_at, [&](std::int64_t col, float sum, float normed) {
    if (p.residual_use != ResidualUse::kNone) store(p.residual, row, col, sum);
    store(p.out, row, col, normed);
  });
}

}  // namespace

Status launch_rms_norm(const RmsNormParams& params, const Stream& stream) {
  const RmsNormParams& p = params;
  check_rms_norm(p);
  if (p.x.rows == 0) return {};
  return launch_kernel("rms_norm", rms_norm,
                       {dim3(static_cast<unsigned>(p.x.rows)), dim3(kNormThreads)}, stream, p);
}

}  // namespace stoker::gpu
