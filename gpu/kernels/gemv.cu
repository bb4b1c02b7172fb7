#include "gpu/error.h"
#include "gpu/kernels/common/tile_dots.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// One block per tile of 16 outputs and kInputs rows of x.
template <QuantFormat kFormat, typename X, int kInputs>
__global__ void __launch_bounds__(kTileThreads) gemv(GemvParams params, bool aligned, int slices) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kInputs;
  const X* inputs[kInputs];
  for (int i = 0; i < kInputs; ++i) {
    // Rows past the last one repeat it and are not stored.
    const std::int64_t row = first + i < params.x.rows ? first + i : params.x.rows - 1;
    inputs[i] = static_cast<const X*>(params.x.data) + row * params.x.row_stride;
  }
  const QuantView* const weight[1] = {&params.weight};
  tile_dots<kFormat, X, kInputs, 1>(
      weight, blockIdx.x, blockIdx.x + 1, inputs, aligned, slices, shared,
      [&](const TileSpot& spot, std::int64_t tile, const float(&dots)[1]) {
        const std::int64_t output = tile * quant::kTileRows + spot.row;
        if (first + spot.input < params.x.rows && output < params.weight.rows) {
          store(params.y, first + spot.input, output, dots[0]);
        }
      });
}

template <QuantFormat kFormat, typename X, int kInputs>
Status launch_inputs(const GemvParams& p, const Stream& stream) {
  const quant::Tile16 tile = quant::tile16_of(p.weight);
  const TilePlan plan = tile_plan<X, StagedInput<kFormat, X, kInputs>>(tile, kInputs, 1);
  const auto kernel = gemv<kFormat, X, kInputs>;
  RETURN_IF_ERROR(allow_shared(kernel, plan.shared_bytes));
  const dim3 grid(static_cast<unsigned>(tile.num_tiles()), blocks_for(p.x.rows, kInputs));
  return launch_kernel("gemv", kernel, {grid, dim3(plan.threads), plan.shared_bytes}, stream, p,
                       reads_aligned(p.x), plan.slices);
}

Status any_kernel(cudaFuncAttributes& attributes) {
  return cuda_status(
      cudaFuncGetAttributes(
          &attributes, reinterpret_cast<const void*>(&gemv<QuantFormat::kF8E4m3B128, bf16, 1>)),
      "looking for kernels that suit this device");
}

}  // namespace

Status launch_gemv(const GemvParams& params, const Stream& stream) {
  const GemvParams& p = params;
  check_tiled(p.weight, "gemv");
  CHECK(!p.weight.spec.is_integer(), "{} in a dense linear",
        quant_format_name(p.weight.spec.format));
  CHECK(is_activation(p.x) && is_activation(p.y), "gemv of {} to {}", dtype_name(p.x.dtype),
        dtype_name(p.y.dtype));
  CHECK(p.x.cols == p.weight.cols && p.y.cols == p.weight.rows && p.x.rows == p.y.rows,
        "[{}, {}] x [{}, {}] -> [{}, {}]", p.x.rows, p.x.cols, p.weight.rows, p.weight.cols,
        p.y.rows, p.y.cols);
  if (p.x.rows == 0) return {};
  return for_format_and_input(p.weight.spec.format, p.x.dtype,
                              [&](auto format, auto input) -> Status {
                                constexpr QuantFormat kFormat = decltype(format)::value;
                                using X = decltype(input);
                                if constexpr (QuantSpec{kFormat}.is_integer()) {
                                  return {};
                                } else {
                                  // How many rows share a reading of the weight does not change any
                                  // row's arithmetic.
                                  return p.x.rows == 1 ? launch_inputs<kFormat, X, 1>(p, stream)
                                                       : launch_inputs<kFormat, X, 4>(p, stream);
                                }
                              });
}

Status kernels_available() {
  cudaFuncAttributes attributes;
  return any_kernel(attributes);
}

bool kernels_may_overlap() {
  constexpr int kOldestMajor = 9, kOldestDriver = 12030;  // the first with such edges in graphs
  const Result<int> major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  int driver = 0;
  cudaFuncAttributes attributes{};
  const bool known = major.ok() &&
                     cuda_status(cudaDriverGetVersion(&driver), "the driver's version").ok() &&
                     any_kernel(attributes).ok();
  // Kernels of a build for older devices, translated for this one, do not wait.
  return known && *major >= kOldestMajor && driver >= kOldestDriver &&
         attributes.ptxVersion >= 10 * kOldestMajor;
}

}  // namespace stoker::gpu
