// The routed experts of decode and verify: gate, up and down in the defined arithmetic, many blocks
// of many experts in one launch.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/tile_dots.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kTasksPerLaunch = 24;  // kernel parameters hold 4 KiB

struct Batch {
  ExpertTask tasks[kTasksPerLaunch];
  TensorView x;
  TensorView out;
  bool aligned;
};
static_assert(sizeof(Batch) <= 4096);

template <typename X, int kInputs>
__device__ void task_inputs(const ExpertTask& task, const TensorView& x,
                            const X* (&inputs)[kInputs]) {
  for (int i = 0; i < kInputs; ++i) {
    const std::int64_t row = task.in_rows[i < task.num_inputs ? i : 0];
    inputs[i] = static_cast<const X*>(x.data) + row * x.row_stride;
  }
}

// Whether this thread holds a value of `task`, whose output row within the block is then set.
template <int kInputs>
__device__ bool holds_value(const ExpertTask& task, std::int64_t& row) {
  const TileSpot spot = tile_spot();
  row = std::int64_t{blockIdx.x} * quant::kTileRows + spot.row;
  return spot.input < kInputs && spot.input < task.num_inputs && row < task.weight.rows;
}

template <QuantFormat kFormat, typename X, int kInputs>
__global__ void __launch_bounds__(kTileThreads) expert_gate_up(const __grid_constant__ Batch b) {
  extern __shared__ float sums[];
  const ExpertTask& task = b.tasks[blockIdx.y];
  if (std::int64_t{blockIdx.x} * quant::kTileRows >= task.weight.rows) return;
  const X* inputs[kInputs];
  task_inputs(task, b.x, inputs);
  float gate = tile_dots<kFormat, X, kInputs>(task.weight, blockIdx.x, inputs, b.aligned, sums);
  float up = tile_dots<kFormat, X, kInputs>(task.up, blockIdx.x, inputs, b.aligned, sums);
  std::int64_t row;
  if (!holds_value<kInputs>(task, row)) return;
  gate = rounded(b.out.dtype, gate);
  up = rounded(b.out.dtype, up);
  store(b.out, task.out_row + tile_spot().input, task.row_begin + row,
        __fmul_rn(quant::silu_defined(gate), up));
}

template <QuantFormat kFormat, typename X, int kInputs>
__global__ void __launch_bounds__(kTileThreads) expert_down(const __grid_constant__ Batch b) {
  extern __shared__ float sums[];
  const ExpertTask& task = b.tasks[blockIdx.y];
  if (std::int64_t{blockIdx.x} * quant::kTileRows >= task.weight.rows) return;
  const X* inputs[kInputs];
  task_inputs(task, b.x, inputs);
  const float value =
      tile_dots<kFormat, X, kInputs>(task.weight, blockIdx.x, inputs, b.aligned, sums);
  std::int64_t row;
  if (!holds_value<kInputs>(task, row)) return;
  store(b.out, task.out_row + tile_spot().input, task.row_begin + row, value);
}

void check_task(const ExpertTask& task, const ExpertTask& first, const TensorView& x, bool has_up) {
  check_tiled(task.weight, "expert");
  CHECK(task.num_inputs > 0 && task.num_inputs <= kExpertTaskRows, "{} rows", task.num_inputs);
  CHECK(task.weight.spec == first.weight.spec && task.weight.cols == x.cols,
        "experts of one call differ, or take {} inputs of {}", task.weight.cols, x.cols);
  if (!has_up) return;
  check_tiled(task.up, "expert");
  CHECK(task.up.spec == task.weight.spec && task.up.rows == task.weight.rows &&
            task.up.cols == task.weight.cols,
        "up [{}, {}] beside gate [{}, {}]", task.up.rows, task.up.cols, task.weight.rows,
        task.weight.cols);
}

// Runs the tasks, a launch's worth at a time. `kernel(format, input, inputs)` names the kernel.
template <typename Kernel>
Status run_batches(const ExpertBatchParams& params, bool has_up, const char* name,
                   const Stream& stream, Kernel&& kernel) {
  CHECK(is_activation(params.x) && params.x.dtype == params.out.dtype, "{}: {} to {}", name,
        dtype_name(params.x.dtype), dtype_name(params.out.dtype));
  for (std::size_t begin = 0; begin < params.tasks.size(); begin += kTasksPerLaunch) {
    const auto tasks = params.tasks.subspan(
        begin, std::min<std::size_t>(kTasksPerLaunch, params.tasks.size() - begin));
    Batch batch{};
    batch.x = params.x;
    batch.out = params.out;
    batch.aligned = reads_aligned(params.x);
    std::int64_t num_tiles = 0;
    int num_inputs = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      check_task(tasks[i], params.tasks[0], params.x, has_up);
      batch.tasks[i] = tasks[i];
      num_tiles = std::max(num_tiles, quant::tile16_of(tasks[i].weight).num_tiles());
      num_inputs = std::max(num_inputs, tasks[i].num_inputs);
    }
    const int inputs = num_inputs == 1 ? 1 : kExpertTaskRows;
    const int threads = tile_threads(quant::tile16_of(tasks[0].weight), inputs);
    const dim3 grid(static_cast<unsigned>(num_tiles), static_cast<unsigned>(tasks.size()));
    const int shared_bytes = tile_shared_bytes(threads, inputs);
    for_format_and_input(tasks[0].weight.spec.format, params.x.dtype, [&](auto format, auto input) {
      if (inputs == 1) {
        kernel(format, input,
               std::integral_constant<int, 1>{})<<<grid, threads, shared_bytes, native(stream)>>>(
            batch);
      } else {
        kernel(format, input,
               std::integral_constant<
                   int, kExpertTaskRows>{})<<<grid, threads, shared_bytes, native(stream)>>>(batch);
      }
    });
    RETURN_IF_ERROR(launch_status(name));
  }
  return {};
}

}  // namespace

Status launch_expert_gate_up(const ExpertBatchParams& params, const Stream& stream) {
  return run_batches(
      params, true, "expert gate and up", stream, [](auto format, auto input, auto inputs) {
        return expert_gate_up<decltype(format)::value, decltype(input), decltype(inputs)::value>;
      });
}

Status launch_expert_down(const ExpertBatchParams& params, const Stream& stream) {
  return run_batches(
      params, false, "expert down", stream, [](auto format, auto input, auto inputs) {
        return expert_down<decltype(format)::value, decltype(input), decltype(inputs)::value>;
      });
}

}  // namespace stoker::gpu
