// The routed experts of decode and verify: gate, up and down in the defined arithmetic, many blocks
// of many experts in one launch.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/tile_dots.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// A launch ends with multiprocessors that have nothing left to do, so it should take all experts of
// a token, each in a run or two; and a KiB of parameters takes 0.1 us to launch.
constexpr int kTasksPerLaunch = 64;

// An ExpertTask without what all tasks of a launch share.
struct Task {
  const std::byte *payload, *scales;        // gate, or down
  const std::byte *up_payload, *up_scales;  // of a gate/up task
  std::int64_t stride;                      // from one block of the run to the next
  std::int32_t rows;                        // of a block
  std::int32_t row_begin, num_inputs, out_row;
  std::int32_t in_rows[kExpertTaskRows];
  std::int32_t num_blocks;  // of the run
};

struct Batch {
  Task tasks[kTasksPerLaunch];
  QuantView shape;  // rows and addresses are the task's
  TensorView x;
  TensorView out;
  bool aligned;
  int slices;
  int tiles_per_block;
};
static_assert(sizeof(Batch) <= 8 << 10);

// Blocks that share a multiprocessor at least, with as many registers as that leaves them: fewer
// hide less of the memory, and more would have no room for their rings.
template <int kInputs>
inline constexpr int kLeastBlocks = kInputs > 1 ? 1 : 3;

// grid.z is the task, and grid.y the block of its run, which only the longest have: addresses
// follow from the grid alone, so they take no registers of a thread.
__device__ int block_of_run() { return static_cast<int>(blockIdx.y); }

__device__ QuantView matrix_of(const Batch& b, const Task& task, bool up) {
  const std::int64_t further = block_of_run() * task.stride;
  QuantView matrix = b.shape;
  matrix.payload = (up ? task.up_payload : task.payload) + further;
  matrix.scales = (up ? task.up_scales : task.scales) + further;  // not read where there are none
  matrix.rows = task.rows;
  return matrix;
}

template <typename X, int kInputs>
__device__ void task_inputs(const Task& task, const TensorView& x, const X* (&inputs)[kInputs]) {
  for (int i = 0; i < kInputs; ++i) {
    const std::int64_t row = task.in_rows[i < task.num_inputs ? i : 0];
    inputs[i] = static_cast<const X*>(x.data) + row * x.row_stride;
  }
}

// The tiles of that block that this block of threads computes: [begin, end), perhaps none.
struct TileRange {
  std::int64_t begin, end;
};
__device__ TileRange tiles_of(const Batch& b, const Task& task) {
  if (block_of_run() >= task.num_blocks) return {};
  const std::int64_t num_tiles = (task.rows + quant::kTileRows - 1) / quant::kTileRows;
  const std::int64_t begin = std::int64_t{blockIdx.x} * b.tiles_per_block;
  return {begin, min(begin + b.tiles_per_block, num_tiles)};
}

// Stores what is at a spot of a tile, if the task has such an output.
__device__ void store_spot(const Batch& b, const Task& task, const TileSpot& spot,
                           std::int64_t tile, float value) {
  const std::int64_t row = tile * quant::kTileRows + spot.row;  // of the block of the run
  if (spot.input >= task.num_inputs || row >= task.rows) return;
  store(b.out, task.out_row + spot.input,
        std::int64_t{block_of_run()} * task.rows + task.row_begin + row, value);
}

template <QuantFormat kFormat, typename X, int kInputs>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks<kInputs>)
    expert_gate_up(const __grid_constant__ Batch b) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const Task& task = b.tasks[blockIdx.z];
  const TileRange tiles = tiles_of(b, task);
  if (tiles.begin >= tiles.end) return;  // other blocks wait for what was before
  const X* inputs[kInputs];
  task_inputs(task, b.x, inputs);
  const QuantView gate_view = matrix_of(b, task, false), up_view = matrix_of(b, task, true);
  const QuantView* const matrices[2] = {&gate_view, &up_view};
  tile_dots<kFormat, X, kInputs, 2>(
      matrices, tiles.begin, tiles.end, inputs, b.aligned, b.slices, shared,
      [&](const TileSpot& spot, std::int64_t tile, const float(&dots)[2]) {
        const float gate = rounded(b.out.dtype, dots[0]), up = rounded(b.out.dtype, dots[1]);
        store_spot(b, task, spot, tile, __fmul_rn(quant::silu_defined(gate), up));
      });
}

template <QuantFormat kFormat, typename X, int kInputs>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks<kInputs>)
    expert_down(const __grid_constant__ Batch b) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const Task& task = b.tasks[blockIdx.z];
  const TileRange tiles = tiles_of(b, task);
  if (tiles.begin >= tiles.end) return;  // other blocks wait for what was before
  const X* inputs[kInputs];
  task_inputs(task, b.x, inputs);
  const QuantView view = matrix_of(b, task, false);
  const QuantView* const matrices[1] = {&view};
  tile_dots<kFormat, X, kInputs, 1>(
      matrices, tiles.begin, tiles.end, inputs, b.aligned, b.slices, shared,
      [&](const TileSpot& spot, std::int64_t tile, const float(&dots)[1]) {
        store_spot(b, task, spot, tile, dots[0]);
      });
}

void check_task(const ExpertTask& task, const ExpertTask& first, const TensorView& x, bool has_up) {
  check_tiled(task.weight, "expert");
  CHECK(task.num_inputs > 0 && task.num_inputs <= kExpertTaskRows, "{} rows", task.num_inputs);
  CHECK(task.num_blocks > 0 && task.stride % 16 == 0, "a run of {} blocks, {} bytes apart",
        task.num_blocks, task.stride);
  CHECK(task.weight.spec == first.weight.spec && task.weight.cols == x.cols,
        "experts of one call differ, or take {} inputs of {}", task.weight.cols, x.cols);
  if (!has_up) return;
  check_tiled(task.up, "expert");
  CHECK(task.up.spec == task.weight.spec && task.up.rows == task.weight.rows &&
            task.up.cols == task.weight.cols,
        "up [{}, {}] beside gate [{}, {}]", task.up.rows, task.up.cols, task.weight.rows,
        task.weight.cols);
}

Task packed(const ExpertTask& task) {
  Task packed{task.weight.payload, task.weight.scales,
              task.up.payload,     task.up.scales,
              task.stride,         static_cast<std::int32_t>(task.weight.rows),
              task.row_begin,      task.num_inputs,
              task.out_row,        {},
              task.num_blocks};
  std::copy(std::begin(task.in_rows), std::end(task.in_rows), packed.in_rows);
  return packed;
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
    Batch batch;
    batch.shape = tasks[0].weight;
    batch.x = params.x;
    batch.out = params.out;
    batch.aligned = reads_aligned(params.x);
    const quant::Tile16 tile = quant::tile16_of(tasks[0].weight);
    std::int64_t num_tiles = 0;
    int num_inputs = 0, num_blocks = 0, most_blocks = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      check_task(tasks[i], params.tasks[0], params.x, has_up);
      batch.tasks[i] = packed(tasks[i]);
      num_blocks += tasks[i].num_blocks;
      most_blocks = std::max(most_blocks, tasks[i].num_blocks);
      num_tiles = std::max(num_tiles, quant::tile16_of(tasks[i].weight).num_tiles());
      num_inputs = std::max(num_inputs, tasks[i].num_inputs);
    }
    const auto launch = [&](auto format, auto input, auto inputs) -> Status {
      using X = decltype(input);
      using Staged = StagedInput<decltype(format)::value, X, decltype(inputs)::value>;
      const TilePlan plan = tile_plan<X, Staged>(tile, inputs, has_up ? 2 : 1);
      batch.slices = plan.slices;
      const auto chosen = kernel(format, input, inputs);
      RETURN_IF_ERROR(allow_shared(chosen, plan.shared_bytes));
      batch.tiles_per_block = 1;
      if (plan.slices >= tile.num_groups()) {
        // The inputs of a block serve all its tiles: as many as let all blocks run at once, if that
        // leaves enough blocks for every multiprocessor to have its share.
        ASSIGN_OR_RETURN(const std::int64_t at_once,
                         blocks_at_once(chosen, plan.threads, plan.shared_bytes));
        const std::int64_t per_block = at_once / num_blocks;
        if (per_block > 1) {
          batch.tiles_per_block = static_cast<int>((num_tiles + per_block - 1) / per_block);
        }
      }
      const dim3 grid(blocks_for(num_tiles, batch.tiles_per_block),
                      static_cast<unsigned>(most_blocks), static_cast<unsigned>(tasks.size()));
      const Start start = params.in_order ? Start::kInOrder : Start::kEarly;
      return launch_kernel(name, chosen, {grid, dim3(plan.threads), plan.shared_bytes, start},
                           stream, batch);
    };
    RETURN_IF_ERROR(for_format_and_input(
        batch.shape.spec.format, params.x.dtype, [&](auto format, auto input) -> Status {
          return num_inputs == 1
                     ? launch(format, input, std::integral_constant<int, 1>{})
                     : launch(format, input, std::integral_constant<int, kExpertTaskRows>{});
        }));
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
