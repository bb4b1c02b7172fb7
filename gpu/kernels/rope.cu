#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

// One thread per pair of one head; grid.x is the row.
__global__ void __launch_bounds__(kThreads) rope(RopeParams p) {
  start_next();
  const int half = p.rope_dim / 2;
  const int index = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  wait_for_previous();
  if (index >= p.num_heads * half) return;
  const std::int64_t row = blockIdx.x;
  const int head = index / half, pair = index % half;
  const int base = head * p.head_stride + p.offset;
  const bool interleaved = p.style == RopeStyle::kInterleaved;
  const int first = base + (interleaved ? 2 * pair : pair);
  const int second = interleaved ? first + 1 : first + half;
  float sine, cosine;
  sincosf(static_cast<float>(p.positions[row]) * p.inv_freq[pair], &sine, &cosine);
  const float a = load(p.x, row, first), b = load(p.x, row, second);
  store(p.x, row, first, a * cosine - b * sine);
  store(p.x, row, second, a * sine + b * cosine);
}

}  // namespace

Status launch_rope(const RopeParams& params, const Stream& stream) {
  const RopeParams& p = params;
  CHECK(is_activation(p.x) && p.rope_dim % 2 == 0, "rope of {} dimensions", p.rope_dim);
  CHECK((p.num_heads - 1) * p.head_stride + p.offset + p.rope_dim <= p.x.cols,
        "{} heads every {} columns at {}: x has {}", p.num_heads, p.head_stride, p.offset,
        p.x.cols);
  if (p.x.rows == 0 || p.rope_dim == 0) return {};
  const dim3 grid(static_cast<unsigned>(p.x.rows),
                  blocks_for(std::int64_t{p.num_heads} * (p.rope_dim / 2), kThreads));
  return launch_kernel("rope", rope, {grid, dim3(kThreads)}, stream, p);
}

}  // namespace stoker::gpu
