#include "gpu/error.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) append(AppendParams p) {
  start_next();
  const std::int64_t row = blockIdx.x;
  wait_for_previous();
  const std::int64_t to = cache_row(p.pages + p.first[row], p.positions[row]);
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kThreads) {
    store(p.cache.rows, to, col, load(p.x, row, col));
  }
}

// One block per row; a warp takes a group at a time. Shared memory: the row's values.
__global__ void __launch_bounds__(kThreads) append_fp8(AppendParams p) {
  start_next();
  extern __shared__ float values[];
  const std::int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const quant::KvRowLayout layout = quant::kv_row_layout(p.cache.row);
  wait_for_previous();
  const std::int64_t place = cache_row(p.pages + p.first[row], p.positions[row]);
  std::byte* to = static_cast<std::byte*>(p.cache.rows.data) + place * p.cache.rows.row_stride;
  const int num_values = static_cast<int>(p.x.cols);
  for (int i = thread; i < num_values; i += kThreads) values[i] = load(p.x, row, i);
  if (p.rotated) {
    rotate_shared(values, num_values, thread, kThreads, [] { __syncthreads(); });
  }
  __syncthreads();
  for (int begin = thread / kWarp * kKvGroup; begin < layout.quantised;
       begin += kThreads / kWarp * kKvGroup) {
    const float scale = warp_group_scale(values, begin, layout.quantised, lane);
    for (int i = begin + lane; i < min(begin + kKvGroup, layout.quantised); i += kWarp) {
      to[i] = static_cast<std::byte>(quant::kv_code(values[i], scale));
    }
    if (lane == 0) quant::set_kv_scale(layout, to, begin, scale);
  }
  for (int i = layout.quantised + thread; i < num_values; i += kThreads) {
    quant::set_kv_kept(layout, to, i, values[i]);
  }
}

}  // namespace

Status launch_append(const AppendParams& params, const Stream& stream) {
  const AppendParams& p = params;
  const KvRow row = p.cache.is_fp8() ? p.cache.row : KvRow{static_cast<std::int32_t>(p.x.cols), 0};
  CHECK(is_activation(p.x) && row.num_values() == p.x.cols && holds(p.cache, row),
        "append of {} columns to a cache of {}", p.x.cols, p.cache.rows.cols);
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
