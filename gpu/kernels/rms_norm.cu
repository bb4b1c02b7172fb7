#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// Of a row that kNormThreads cannot hold in one batch: then it is one trip to memory and back.
constexpr int kManyThreads = 1024;

// One block per row. `out` may be `x`.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) rms_norm(RmsNormParams p) {
  start_next();
  __shared__ float scratch[kThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  float weights[kNormBatch];
  load_batch(p.weight, 0, static_cast<int>(threadIdx.x), kThreads, weights);
  wait_for_previous();
  const auto load_sums = [&](int first, float(&s)[kNormBatch]) {
    load_batch(p.x, row, first, kThreads, s);
    if (p.residual_use != ResidualUse::kAdd) return;
    float residual[kNormBatch];
    load_batch(p.residual, row, first, kThreads, residual);
#pragma unroll
    for (int i = 0; i < kNormBatch; ++i) s[i] += residual[i];
  };
  rms_norm_row<kThreads>(p, weights, scratch, load_sums, [&](int col, float sum, float normed) {
    if (p.residual_use != ResidualUse::kNone) store(p.residual, row, col, sum);
    store(p.out, row, col, normed);
  });
}

}  // namespace

Status launch_rms_norm(const RmsNormParams& params, const Stream& stream) {
  const RmsNormParams& p = params;
  check_rms_norm(p);
  if (p.x.rows == 0) return {};
  const bool is_long = p.x.cols > kNormBatch * kNormThreads;
  return launch_kernel(
      "rms_norm", is_long ? rms_norm<kManyThreads> : rms_norm<kNormThreads>,
      {dim3(static_cast<unsigned>(p.x.rows)), dim3(is_long ? kManyThreads : kNormThreads)}, stream,
      p);
}

}  // namespace stoker::gpu
