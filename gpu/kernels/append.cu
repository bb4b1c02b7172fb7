#include "gpu/error.h"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) append(AppendParams p) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t to = cache_row(p.pages + p.first[row], p.positions[row]);
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    store(p.cache, to, col, load(p.x, row, col));
  }
}

}  // namespace

Status launch_append(const AppendParams& params, const Stream& stream) {
  const AppendParams& p = params;
  CHECK(p.x.cols == p.cache.cols && is_activation(p.x) && is_activation(p.cache),
        "append of {} columns to a cache of {}", p.x.cols, p.cache.cols);
  if (p.x.rows == 0) return {};
  append<<<static_cast<unsigned>(p.x.rows), kThreads, 0, native(stream)>>>(p);
  return launch_status("append");
}

}  // namespace stoker::gpu
