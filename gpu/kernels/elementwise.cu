#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"
#include "quant/defined_arithmetic.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;

__device__ std::int64_t column() {
  return static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
}

// grid.x is the row, grid.y a stretch of columns.
LaunchShape shape_over(const TensorView& x) {
  return {dim3(static_cast<unsigned>(x.rows), blocks_for(x.cols, kThreads)), dim3(kThreads)};
}

__global__ void __launch_bounds__(kThreads) scale(TensorView x, float factor) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  wait_for_previous();
  if (col < x.cols) scale_value(x, row, col, factor);
}

__global__ void __launch_bounds__(kThreads)
    silu_mul(TensorView gate, TensorView up, TensorView out) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  wait_for_previous();
  if (col >= out.cols) return;
  store(out, row, col, quant::silu_defined(load(gate, row, col)) * load(up, row, col));
}

__global__ void __launch_bounds__(kThreads)
    gather_rows(TensorView x, const std::int32_t* rows, TensorView out) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  wait_for_previous();
  if (col < out.cols) store(out, row, col, load(x, rows[row], col));
}

__global__ void __launch_bounds__(kThreads) embed(EmbedParams p) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  wait_for_previous();
  if (col >= p.out.cols) return;
  const std::int64_t token = p.tokens[row];
  store(p.out, row, col,
        quant::element_at(p.table, token, col) * quant::scale_at(p.table, token, col));
}

// `rows` in elements of T; grid.x is the row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    post(const T* rows, std::int64_t row_stride, std::int64_t cols, T* host) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  wait_for_previous();
  if (col < cols) host[row * cols + col] = rows[row * row_stride + col];
}

__global__ void __launch_bounds__(kThreads) combine(const __grid_constant__ CombineRowsParams p) {
  start_next();
  const std::int64_t row = blockIdx.x, col = column();
  const std::int32_t* const slots = p.slots != nullptr ? p.slots : p.few.slots;
  const float* const weights = p.slots != nullptr ? p.weights : p.few.weights;
  wait_for_previous();
  if (col >= p.out.cols) return;
  float y = 0.0f;
  for (int i = 0; i < p.top_k; ++i) {
    const std::int64_t choice = row * p.top_k + i;
    y = quant::fma_defined(load(p.expert_out, slots[choice], col), weights[choice], y);
  }
  if (p.shared.data != nullptr) y = __fadd_rn(y, load(p.shared, row, col));
  store(p.out, row, col, y);
}

}  // namespace

Status launch_scale(TensorView x, float factor, const Stream& stream) {
  if (x.rows == 0) return {};
  return launch_kernel("scale", scale, shape_over(x), stream, x, factor);
}

Status launch_silu_mul(TensorView gate, TensorView up, TensorView out, const Stream& stream) {
  CHECK(
      gate.cols == out.cols && up.cols == out.cols && gate.rows == out.rows && up.rows == out.rows,
      "silu_mul: gate [{}, {}], up [{}, {}], out [{}, {}]", gate.rows, gate.cols, up.rows, up.cols,
      out.rows, out.cols);
  if (out.rows == 0) return {};
  return launch_kernel("silu_mul", silu_mul, shape_over(out), stream, gate, up, out);
}

Status launch_gather_rows(TensorView x, const std::int32_t* rows, TensorView out,
                          const Stream& stream) {
  CHECK(x.cols == out.cols, "{} columns to {}", x.cols, out.cols);
  if (out.rows == 0) return {};
  return launch_kernel("gather_rows", gather_rows, shape_over(out), stream, x, rows, out);
}

Status launch_post(TensorView rows, void* host, const Stream& stream) {
  if (rows.rows == 0 || rows.cols == 0) return {};
  const auto element = static_cast<std::int64_t>(dtype_bytes(rows.dtype));
  const auto post_as = [&](auto unit) {
    using T = decltype(unit);
    const auto size = static_cast<std::int64_t>(sizeof(T));
    const std::int64_t cols = rows.cols * element / size;
    const LaunchShape shape = {dim3(static_cast<unsigned>(rows.rows), blocks_for(cols, kThreads)),
                               dim3(kThreads)};
    return launch_kernel("post", post<T>, shape, stream, static_cast<const T*>(rows.data),
                         rows.row_stride * element / size, cols, static_cast<T*>(host));
  };
  const auto divides = [](auto value) { return value % std::int64_t{sizeof(uint4)} == 0; };
  const bool wide = divides(rows.cols * element) &&
                    (rows.rows == 1 || divides(rows.row_stride * element)) &&
                    divides(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows.data) |
                                                      reinterpret_cast<std::uintptr_t>(host)));
  return wide ? post_as(uint4{}) : post_as(std::byte{});
}

Status launch_embed(const EmbedParams& params, const Stream& stream) {
  CHECK(params.table.layout == WeightLayout::kRowMajor && params.table.cols == params.out.cols,
        "table of {} columns to {}", params.table.cols, params.out.cols);
  if (params.out.rows == 0) return {};
  return launch_kernel("embed", embed, shape_over(params.out), stream, params);
}

Status launch_combine(const CombineRowsParams& params, const Stream& stream) {
  const CombineRowsParams& p = params;
  CHECK(p.expert_out.cols == p.out.cols && (p.shared.empty() || p.shared.cols == p.out.cols),
        "combine: {} and {} columns to {}", p.expert_out.cols, p.shared.cols, p.out.cols);
  if (p.out.rows == 0) return {};
  return launch_kernel("combine", combine, shape_over(p.out), stream, p);
}

}  // namespace stoker::gpu
