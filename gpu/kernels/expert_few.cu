// Routed experts of few rows on tensor cores: gate, up and down for BF16 inputs, many blocks of
// many experts in one launch. Not the defined arithmetic.
//
// Arithmetic, which depends on the shape alone: weights are codes, exact in BF16 (INT4 codes as
// code + 136, less 136 times the inputs' sum; FP8 codes times 2^-120, for inputs times 2^60). A
// stretch of columns that share a scale, at most a chunk, is summed by tensor cores from zero; a
// warp takes every eighth chunk and closes their stretches in order, acc = fma(sum, scale, acc)
// from zero; the eight warps' sums are added in order. Rows beside a row, and tiles beside a tile,
// touch no bit. Beside FP8 weights, inputs and scales must be below 2^68; those are activations,
// far below it.
//
// The pairs of tiles (gate and up of 16 rows, or 32 rows of down) of all tasks stand in a row, of
// which every block takes an equal share. A warp streams its columns of a pair through a ring of
// its own, 2 KiB and the inputs of their columns at a time, and goes on from one pair to the next
// while the block closes the one before. Warps wait for each other once a pair.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/expert_tiles.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"
#include "quant/defined_arithmetic.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTurns = 16;  // of a chunk
constexpr int kLeastStages = 2, kMostStages = 3;
// Blocks that share a multiprocessor. More of gate and up do not pay, and scales of small groups
// take more registers.
template <int kGroup, bool kGateUp>
inline constexpr int kBlocks = kGateUp || kGroup < 64 ? 2 : 3;
// Their shared memory, unless two stages take more: so many fit the H100's 228 KiB, and one fits
// any device.
constexpr int shared_budget(int blocks) { return (blocks == 2 ? 96 : 74) << 10; }
// All experts of a token, each in a run or two; a KiB of parameters takes 0.1 us to launch.
constexpr int kTasksPerLaunch = 64;

static_assert(kExpertFewRows == kMmaN);

// An ExpertFewTask without what all tasks of a launch share.
struct Task {
  const std::byte *payload, *scales;        // gate, or down
  const std::byte *up_payload, *up_scales;  // of a gate/up task
  std::int64_t stride;                      // from one block of the run to the next
  std::int32_t rows;                        // of a block
  std::int32_t row_begin, num_inputs, out_row;
  std::int32_t in_rows[kExpertFewRows];
  std::int32_t first_pair;  // of all pairs of a launch
};

struct Batch {
  Task tasks[kTasksPerLaunch + 1];  // and where the pairs of the last end
  TensorView x;
  TensorView out;
  int most_inputs;  // of a task
  int stages;       // of a ring
  int stage_bytes, ring_bytes;
  int num_tasks, num_pairs;
};
static_assert(sizeof(Batch) <= 8 << 10);

// Pair `pair` of a task: the block of the run, as a task of its own would have it, and the pair's
// number there.
struct BlockPair {
  const std::byte *payload, *scales, *up_payload, *up_scales;
  std::int32_t rows, row_begin;
  int pair;
};
template <bool kGateUp>
__device__ BlockPair block_pair(const Task& task, int pair) {
  const int pairs = gpu::num_pairs<kGateUp>(task.rows);
  const int block = static_cast<int>(static_cast<unsigned>(pair) / static_cast<unsigned>(pairs));
  const std::int64_t further = block * task.stride;
  return {task.payload + further,
          task.scales + further,
          task.up_payload + further,
          task.up_scales + further,
          task.rows,
          task.row_begin + block * task.rows,
          pair - block * pairs};
}

template <typename C>
__device__ int turns_of(int cols) {
  constexpr unsigned kTurnCols = kPerWord<C::kFormat>;
  return static_cast<int>((static_cast<unsigned>(cols) + kTurnCols - 1) / kTurnCols);
}

template <typename C>
__host__ __device__ constexpr int stage_bytes(int most_inputs) {
  return C::kBytes + most_inputs * C::kCols * static_cast<int>(sizeof(bf16));
}
__host__ __device__ constexpr int sums_of_block(int most_inputs) {
  return kWarps * most_inputs * kSumStride;
}

__device__ void wait_for_oldest(int stages) {
  if (stages == 3) {
    wait_for_all_copies_but<1>();
  } else {
    wait_for_all_copies_but<0>();
  }
}

// The chunks that one warp will use, in order, with the inputs of their columns.
template <typename C, bool kGateUp>
class ChunkRing {
 public:
  __device__ ChunkRing(const Batch& b, const Task* task, int pair_begin, int pair_end,
                       int num_chunks, unsigned ring)
      : batch_(b),
        task_(task),
        pair_(pair_begin),
        pair_end_(this_warp() < num_chunks ? pair_end : pair_begin),
        ring_(ring),
        before_(b.ring_bytes - b.stage_bytes),
        lane_to_(staged_piece(C::kWords, this_lane() / 4, this_lane() % 4) * kPieceBytes),
        input_to_(C::kBytes + staged_input(kPieces, this_lane() / kPieces, this_lane() % kPieces) *
                                  kPieceBytes) {
    begin_pair();
    for (int i = 0; i < b.stages - 1; ++i) push(ring_ + i * b.stage_bytes);
  }

  // Waits for the next chunk and returns its address. Asks for another one, whose place is that of
  // the chunk before, which is given up.
  __device__ unsigned pop() {
    wait_for_oldest(batch_.stages);
    __syncwarp();
    push(ring_ + before_);
    before_ = popped_;
    popped_ += batch_.stage_bytes;
    if (popped_ == batch_.ring_bytes) popped_ = 0;
    return ring_ + before_;
  }

 private:
  static constexpr int kPieces = C::kCols / 8;  // of a row of inputs
  static constexpr int kRowsPerCopy = kWarp / kPieces;
  static constexpr int kInputCopies = kExpertFewRows / kRowsPerCopy;
  static constexpr int kStepCols = kWarps * C::kCols;
  static_assert(kStepCols % C::kSpec.group == 0);
  static_assert(kRowsPerCopy % 2 == 0 && kInputCopies * kRowsPerCopy == kExpertFewRows);

  __device__ static int this_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int this_lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  __device__ void begin_pair() {
    if (pair_ >= pair_end_) return;
    while (pair_ >= task_[1].first_pair) ++task_;
    const TileSizes sizes = tile_sizes<C::kFormat, C::kSpec.group>(batch_.x.cols);
    const BlockPair place = block_pair<kGateUp>(*task_, pair_ - task_->first_pair);
    const TilePair tiles = tiles_of<kGateUp>(place, sizes, place.pair);
    from_ = lane_sources<C>(tiles, this_warp(), this_lane());
    has_second_ = tiles.has[1];
    col_ = this_warp() * C::kCols;
    const int row = this_lane() / kPieces;
    has_input_ = row < task_->num_inputs;
    input_ = static_cast<const bf16*>(batch_.x.data) +
             task_->in_rows[has_input_ ? row : 0] * batch_.x.row_stride + col_ +
             this_lane() % kPieces * 8;
  }

  // Rows of inputs from number `begin` of copies on.
  __device__ void copy_inputs(unsigned to, int begin) {
    const int cols = static_cast<int>(batch_.x.cols);
    const int first_row = this_lane() / kPieces, piece = this_lane() % kPieces;
    const int col = col_ + piece * 8;
    for (int i = begin; i * kRowsPerCopy < task_->num_inputs; ++i) {
      const bool wanted = first_row + i * kRowsPerCopy < task_->num_inputs;
      const std::int64_t row = task_->in_rows[wanted ? first_row + i * kRowsPerCopy : 0];
      copy_piece_async(to + input_to_ + i * kRowsPerCopy * kPieces * kPieceBytes,
                       static_cast<const bf16*>(batch_.x.data) + row * batch_.x.row_stride + col,
                       col < cols, wanted);
    }
  }

  __device__ void push(unsigned to) {
    if (pair_ < pair_end_) {
      const int cols = static_cast<int>(batch_.x.cols);
      if (has_second_ && col_ + C::kCols <= cols) {
        copy_whole_chunk<C>(to, from_, lane_to_, this_lane());
        if (has_input_) copy_16_async(to + input_to_, input_);
        if (task_->num_inputs > kRowsPerCopy) copy_inputs(to, 1);
      } else {
        const bool has[2] = {true, has_second_};
        copy_chunk<C>(to, from_, turns_of<C>(cols - col_), has, this_lane());
        copy_inputs(to, 0);
      }
      from_.payload[0] += C::payload_at(kWarps);
      from_.payload[1] += C::payload_at(kWarps);
      from_.scales += C::scales_at(kWarps);
      input_ += kStepCols;
      col_ += kStepCols;
      if (col_ >= cols) {
        ++pair_;
        begin_pair();
      }
    }
    commit_copies();
  }

  const Batch& batch_;
  const Task* task_;
  LaneSources from_;  // of what is asked for next, and its first column
  int col_ = 0;
  bool has_second_ = true;
  int pair_;
  const int pair_end_;
  const bf16* input_ = nullptr;  // of this lane's first piece of inputs
  bool has_input_ = false;
  const unsigned ring_;
  int popped_ = 0, before_;  // bytes into the ring: what comes next, what came before
  const int lane_to_, input_to_;
};

// total += the chunk at `at`, closed.
template <typename C>
__device__ void add_chunk(unsigned at, const LanePlaces<C>& places, float (&total)[2][4]) {
  constexpr bool kInt4 = C::kFormat == QuantFormat::kInt4;
  float sums[2][4], less[4];
#pragma unroll
  for (int u = 0; u < C::kUnits; ++u) {
    if (u % C::kUnitsPerGroup == 0) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][e] = sums[1][e] = less[e] = 0.0f;
    }
    const uint4 x =
        biased_inputs<C::kFormat>(read_16(at + places.inputs[u % 2] + u / 2 * 8 * kPieceBytes));
    BfPair w[4][4];
    read_biased_weights<C>(at, u, places, w);
    if constexpr (kInt4) {
      constexpr unsigned kLess = kInt4Less * 0x10001u;
      constexpr unsigned a[4] = {kLess, kLess, kLess, kLess};
      mma(less, a, x.x, x.y);
      mma(less, a, x.z, x.w);
    }
    multiply_unit(sums, w, x);
    if ((u + 1) % C::kUnitsPerGroup != 0) continue;
    float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    if constexpr (C::kSpec.is_integer()) {
      const uint2 four = read_8(at + places.scales + u / C::kUnitsPerGroup * C::kGroupScaleBytes);
      scales[0] = low_half(four.x), scales[1] = high_half(four.x);
      scales[2] = low_half(four.y), scales[3] = high_half(four.y);
    } else if constexpr (C::kSpec.has_scales()) {
      const float one = __uint_as_float(read_4(at + places.scales)) * kFp8ScaleFactor;
      scales[0] = scales[1] = scales[2] = scales[3] = one;
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kInt4) sums[m][e] = __fadd_rn(sums[m][e], less[e]);
        total[m][e] = __fmaf_rn(sums[m][e], scales[a_row(m, e / 2)], total[m][e]);
      }
    }
  }
}

__device__ float sum_of_warps(const float* sums, int most_inputs) {
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum = __fadd_rn(sum, sums[w * most_inputs * kSumStride]);
  return sum;
}

// Shared memory: a ring for each warp, sums of even and odd pairs
// [2][kWarps][most_inputs][kSumStride].
template <QuantFormat kFormat, int kGroup, bool kGateUp>
__global__ void __launch_bounds__(kThreads, (kBlocks<kGroup, kGateUp>))
    expert_few(const __grid_constant__ Batch b) {
  start_next();
  using C = Chunk<kFormat, kGroup, kTurns>;
  extern __shared__ __align__(16) std::byte shared[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int block = static_cast<int>(blockIdx.x), num_blocks = static_cast<int>(gridDim.x);
  const int pair_begin = share_begin(block, num_blocks, b.num_pairs);
  const int pair_end = share_begin(block + 1, num_blocks, b.num_pairs);
  const int num_chunks = (static_cast<int>(b.x.cols) + C::kCols - 1) / C::kCols;
  const Task* task = b.tasks + task_at(b.tasks, b.num_tasks, pair_begin, &Task::first_pair);
  wait_for_previous();
  ChunkRing<C, kGateUp> ring(b, task, pair_begin, pair_end, num_chunks,
                             shared_address(shared) + warp * b.ring_bytes);
  auto* const all_sums = reinterpret_cast<float*>(shared + kWarps * b.ring_bytes);
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    while (pair >= task[1].first_pair) ++task;
    const int num_inputs = task->num_inputs;
    // 1. Every eighth chunk a warp.
    float total[2][4] = {};
    const LanePlaces<C> places(thread % kWarp, num_inputs);
    for (int chunk = warp; chunk < num_chunks; chunk += kWarps) {
      add_chunk<C>(ring.pop(), places, total);
    }
    float* const sums = all_sums + (pair - pair_begin) % 2 * sums_of_block(b.most_inputs);
    store_sums(total, num_inputs, sums + warp * b.most_inputs * kSumStride);
    __syncthreads();
    // 2. The warps in order.
    constexpr int kOutputs = kGateUp ? quant::kTileRows : kPairRows;
    const int input = thread / kOutputs, output = thread % kOutputs;
    const BlockPair place = block_pair<kGateUp>(*task, pair - task->first_pair);
    const int row = place.pair * kOutputs + output;
    if (input >= num_inputs || row >= place.rows) continue;
    const float* const mine = sums + input * kSumStride + output;
    float value = sum_of_warps(mine, b.most_inputs);
    if constexpr (kGateUp) {
      const float gate = rounded(b.out.dtype, value);
      const float up = rounded(b.out.dtype, sum_of_warps(mine + quant::kTileRows, b.most_inputs));
      value = __fmul_rn(quant::silu_defined(gate), up);
    }
    store(b.out, task->out_row + input, place.row_begin + row, value);
  }
}

Task packed(const ExpertFewTask& task) {
  Task packed{task.weight.payload,
              task.weight.scales,
              task.up.payload,
              task.up.scales,
              task.stride,
              static_cast<std::int32_t>(task.weight.rows),
              task.row_begin,
              task.num_inputs,
              task.out_row,
              {},
              0};
  std::copy(std::begin(task.in_rows), std::end(task.in_rows), packed.in_rows);
  return packed;
}

template <bool kGateUp>
Status run_batches(const ExpertFewParams& params, const char* name, const Stream& stream) {
  if (params.tasks.empty()) return {};
  const QuantSpec spec = params.tasks[0].weight.spec;
  CHECK(suits_expert_mma(spec, params.x) && params.out.dtype == DType::kBf16, "{}: {} of {} to {}",
        name, quant_spec_name(spec), dtype_name(params.x.dtype), dtype_name(params.out.dtype));
  ASSIGN_OR_RETURN(const int multiprocessors, device_attribute(cudaDevAttrMultiProcessorCount));
  ASSIGN_OR_RETURN(const int multiprocessor_bytes,
                   device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  for (std::size_t begin = 0; begin < params.tasks.size(); begin += kTasksPerLaunch) {
    const auto tasks = params.tasks.subspan(
        begin, std::min<std::size_t>(kTasksPerLaunch, params.tasks.size() - begin));
    Batch batch;
    batch.x = params.x;
    batch.out = params.out;
    batch.most_inputs = 0;
    int num_pairs = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const ExpertFewTask& task = tasks[i];
      check_expert_mma(task.weight, kGateUp ? task.up : QuantView{}, spec, params.x.cols);
      CHECK(task.num_inputs > 0 && task.num_inputs <= kExpertFewRows, "{} rows", task.num_inputs);
      CHECK(task.num_blocks > 0 && task.stride % 16 == 0, "a run of {} blocks, {} bytes apart",
            task.num_blocks, task.stride);
      batch.tasks[i] = packed(task);
      batch.tasks[i].first_pair = num_pairs;
      batch.most_inputs = std::max(batch.most_inputs, task.num_inputs);
      num_pairs += task.num_blocks * gpu::num_pairs<kGateUp>(task.weight.rows);
    }
    batch.tasks[tasks.size()].first_pair = num_pairs;
    batch.num_tasks = static_cast<int>(tasks.size());
    batch.num_pairs = num_pairs;
    RETURN_IF_ERROR(for_expert_spec(spec, [&](auto format, auto group) -> Status {
      constexpr int kGroup = decltype(group)::value, kMost = kBlocks<kGroup, kGateUp>;
      using C = Chunk<decltype(format)::value, kGroup, kTurns>;
      auto* const kernel = expert_few<C::kFormat, kGroup, kGateUp>;
      const int sums_bytes = 2 * sums_of_block(batch.most_inputs) * static_cast<int>(sizeof(float));
      batch.stage_bytes = stage_bytes<C>(batch.most_inputs);
      batch.stages = std::clamp((shared_budget(kMost) - sums_bytes) / (kWarps * batch.stage_bytes),
                                kLeastStages, kMostStages);
      batch.ring_bytes = batch.stages * batch.stage_bytes;
      const int shared_bytes = kWarps * batch.ring_bytes + sums_bytes;
      RETURN_IF_ERROR(allow_shared(kernel, shared_bytes));
      constexpr int kReserved = 1 << 10;  // of a block's shared memory
      const int blocks = std::clamp(multiprocessor_bytes / (shared_bytes + kReserved), 1, kMost);
      const dim3 grid(static_cast<unsigned>(std::min(multiprocessors * blocks, num_pairs)));
      const Start start = params.in_order ? Start::kInOrder : Start::kEarly;
      return launch_kernel(name, kernel, {grid, dim3(kThreads), shared_bytes, start}, stream,
                           batch);
    }));
  }
  return {};
}

}  // namespace

bool suits_expert_mma(const QuantSpec& spec, const TensorView& x) {
  const bool integer_group = spec.format == QuantFormat::kInt4 &&
                             (spec.group == 32 || spec.group == 64 || spec.group == 128);
  const bool format = spec.format == QuantFormat::kBf16 ||
                      spec.format == QuantFormat::kF8E4m3B128 || spec.format == QuantFormat::kInt8;
  return (integer_group || (format && spec.group == 128)) && x.dtype == DType::kBf16 &&
         x.cols % 8 == 0 && x.row_stride % 8 == 0 &&
         reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
}

void check_expert_mma(const QuantView& weight, const QuantView& up, const QuantSpec& spec,
                      std::int64_t cols) {
  const auto check = [&](const QuantView& w) {
    CHECK(w.layout == WeightLayout::kTile16 && w.device != kHost, "expert: not tile16 on a device");
    CHECK(w.spec == spec && w.cols == cols, "expert: {} [{}, {}] for {} and {} inputs",
          quant_spec_name(w.spec), w.rows, w.cols, quant_spec_name(spec), cols);
    CHECK(reinterpret_cast<std::uintptr_t>(w.payload) % 16 == 0, "expert: payload not aligned");
    CHECK(!spec.has_scales() ||
              (w.scales != nullptr &&
               reinterpret_cast<std::uintptr_t>(w.scales) % (spec.is_integer() ? 16 : 4) == 0),
          "expert: no scales, or not aligned");
  };
  check(weight);
  if (up.empty()) return;
  check(up);
  CHECK(up.rows == weight.rows, "{} rows of up beside {} of gate", up.rows, weight.rows);
}

Status launch_expert_gate_up_few(const ExpertFewParams& params, const Stream& stream) {
  return run_batches<true>(params, "expert gate and up of few rows", stream);
}

Status launch_expert_down_few(const ExpertFewParams& params, const Stream& stream) {
  return run_batches<false>(params, "expert down of few rows", stream);
}

}  // namespace stoker::gpu
