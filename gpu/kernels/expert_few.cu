// Routed experts of few rows on tensor cores: gate, up and down for BF16 inputs, many blocks of
// many experts in one launch. Not the defined arithmetic.
//
// Arithmetic, which depends on the shape alone: weights are codes, exact in BF16. A stretch of
// columns that share a scale, at most a chunk, is summed by tensor cores from zero; a warp takes
// every eighth chunk and closes their stretches in order, acc = fma(sum, scale, acc) from zero; the
// eight warps' sums are added in order. Rows beside a row, and tiles beside a tile, touch no bit.
//
// A warp streams a pair of tiles (gate and up of 16 rows, or 32 rows of down) through a ring of its
// own, 2 KiB and the inputs of their columns at a time, and goes on from one pair to the next while
// the block closes the one before. Warps wait for each other once a pair.
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
constexpr int kLeastStages = 2, kMostStages = 4;
// Blocks that share a multiprocessor, as shared memory and registers allow; scales of small groups
// take more of these.
constexpr int blocks_per_multiprocessor(int group) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  (void)group;
  return 2;
#else
  return group < 64 ? 2 : 3;
#endif
}
// Three blocks of it fit a multiprocessor of the H100, two of it the A100's, one any other.
constexpr int kRingBudget = 72 << 10;
// Kernel parameters hold 32 KiB; FP8 experts of a token have 256 blocks of gate and up.
constexpr int kTasksPerLaunch = 256;
// Rows of sums are padded so that lanes that store for different inputs use different banks.
constexpr int kSumStride = kPairRows + 4;

static_assert(kExpertFewRows == kMmaN);

// An ExpertFewTask without what all tasks of a launch share.
struct Task {
  const std::byte *payload, *scales;        // gate, or down
  const std::byte *up_payload, *up_scales;  // of a gate/up task
  std::int32_t rows, row_begin, num_inputs, out_row;
  std::int32_t in_rows[kExpertFewRows];
};

struct Batch {
  Task tasks[kTasksPerLaunch];
  TensorView x;
  TensorView out;
  int most_inputs;  // of a task
  int stages;       // of a ring
  int stage_bytes, ring_bytes;
  int pairs_per_block;
};
static_assert(sizeof(Batch) <= 32764);

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
  if (stages == 4) {
    wait_for_all_copies_but<2>();
  } else if (stages == 3) {
    wait_for_all_copies_but<1>();
  } else {
    wait_for_all_copies_but<0>();
  }
}

// The chunks that one warp will use, in order, with the inputs of their columns.
template <typename C, bool kGateUp>
class ChunkRing {
 public:
  __device__ ChunkRing(const Batch& b, const Task& task, int pair_begin, int pair_end,
                       int num_chunks, unsigned ring)
      : batch_(b),
        task_(task),
        pair_(pair_begin),
        pair_end_(this_warp() < num_chunks ? pair_end : pair_begin),
        ring_(ring) {
    begin_pair();
    for (int i = 0; i < b.stages - 1; ++i) push();
  }

  // Waits for the next chunk and returns its address. Asks for another one, whose place is that of
  // the chunk before, which is given up.
  __device__ unsigned pop() {
    wait_for_oldest(batch_.stages);
    __syncwarp();
    push();
    const unsigned at = ring_ + popped_;
    popped_ = next(popped_);
    return at;
  }

 private:
  static constexpr int kPieces = C::kCols / 8;  // of a row of inputs
  static constexpr int kRowsPerCopy = kWarp / kPieces;
  static constexpr int kInputCopies = kExpertFewRows / kRowsPerCopy;
  static_assert(kRowsPerCopy % 2 == 0 && kInputCopies * kRowsPerCopy == kExpertFewRows);
  static_assert(kWarps * C::kCols % C::kSpec.group == 0);

  __device__ static int this_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int this_lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ int next(int place) const {
    return place + batch_.stage_bytes < batch_.ring_bytes ? place + batch_.stage_bytes : 0;
  }

  __device__ void begin_pair() {
    if (pair_ >= pair_end_) return;
    const TileSizes sizes = tile_sizes<C::kFormat, C::kSpec.group>(batch_.x.cols);
    const TilePair tiles = tiles_of<kGateUp>(task_, sizes, pair_);
    from_ = lane_sources<C>(tiles, this_warp(), this_lane());
    has_second_ = tiles.has[1];
    col_ = this_warp() * C::kCols;
  }

  __device__ void push() {
    if (pair_ < pair_end_) {
      const int cols = static_cast<int>(batch_.x.cols), lane = this_lane();
      const unsigned to = ring_ + pushed_;
      const bool has[2] = {true, kGateUp || has_second_};
      copy_chunk<C>(to, from_, turns_of<C>(cols - col_), has, lane);
      const int first_row = lane / kPieces, piece = lane % kPieces;
      const unsigned input_to = to + C::kBytes + staged_input(kPieces, first_row, piece) * 16;
      const int col = col_ + piece * 8;
#pragma unroll
      for (int i = 0; i < kInputCopies; ++i) {
        if (i * kRowsPerCopy >= task_.num_inputs) break;
        const bool wanted = first_row + i * kRowsPerCopy < task_.num_inputs;
        const std::int64_t row = task_.in_rows[wanted ? first_row + i * kRowsPerCopy : 0];
        copy_piece_async(input_to + i * kRowsPerCopy * kPieces * kPieceBytes,
                         static_cast<const bf16*>(batch_.x.data) + row * batch_.x.row_stride + col,
                         col < cols, wanted);
      }
      constexpr int kStepTurns = kWarps * C::kTurns;
      from_.payload[0] += kStepTurns * quant::kTileRows * 4;
      from_.payload[1] += kStepTurns * quant::kTileRows * 4;
      from_.scales += kWarps * C::kCols / C::kSpec.group * C::kGroupScaleBytes;
      col_ += kWarps * C::kCols;
      if (col_ >= cols) {
        ++pair_;
        begin_pair();
      }
    }
    commit_copies();
    pushed_ = next(pushed_);
  }

  const Batch& batch_;
  const Task& task_;
  LaneSources from_;  // of what is asked for next, and its first column
  int col_ = 0;
  bool has_second_ = true;
  int pair_;
  const int pair_end_;
  int pushed_ = 0, popped_ = 0;  // bytes into the ring
  const unsigned ring_;
};

// total += the chunk at `at`, closed.
template <typename C>
__device__ void add_chunk(unsigned at, int num_inputs, float (&total)[2][4]) {
  constexpr int kPieces = C::kCols / 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int row = min(g, num_inputs - 1);  // sums of inputs that are not there are left alone
  float sums[2][4];
#pragma unroll
  for (int u = 0; u < C::kUnits; ++u) {
    if (u % C::kUnitsPerGroup == 0) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][e] = sums[1][e] = 0.0f;
    }
    const uint4 x = read_16(at + C::kBytes + staged_input(kPieces, row, unit_piece(u, t)) * 16);
    BfPair w[4][4];
    read_weights<C>(at, u, g, t, w);
    multiply<0, 0>(sums[0], w, x);
    multiply<1, 0>(sums[1], w, x);
    multiply<0, 1>(sums[0], w, x);
    multiply<1, 1>(sums[1], w, x);
    if ((u + 1) % C::kUnitsPerGroup != 0) continue;
    float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    if constexpr (C::kSpec.is_integer()) {
      const uint2 four = read_integer_scales<C>(at, u / C::kUnitsPerGroup, g);
      scales[0] = low_half(four.x), scales[1] = high_half(four.x);
      scales[2] = low_half(four.y), scales[3] = high_half(four.y);
    } else if constexpr (C::kSpec.has_scales()) {
      const float one = read_tile_scale<C>(at, g);
      scales[0] = scales[1] = scales[2] = scales[3] = one;
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
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

// Asks for the beginning of a pair, as much as the rings of a block hold, and for its scales.
template <typename C, bool kGateUp>
__device__ void prefetch_pair(const Batch& b, const Task& task, int pair) {
  const TileSizes sizes = tile_sizes<C::kFormat, C::kSpec.group>(b.x.cols);
  const TilePair tiles = tiles_of<kGateUp>(task, sizes, pair);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (!tiles.has[s]) continue;
    prefetch_block(tiles.payload[s],
                   min(static_cast<int>(sizes.tile_bytes), kThreads * kPrefetchLine));
    prefetch_block(tiles.scales[s], static_cast<int>(sizes.tile_scale_bytes));
  }
}

// Block (i, j): the i-th share of the pairs of task j. Shared memory: a ring for each warp, sums of
// even and odd pairs [2][kWarps][most_inputs][kSumStride].
template <QuantFormat kFormat, int kGroup, bool kGateUp>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor(kGroup))
    expert_few(const __grid_constant__ Batch b) {
  start_next();
  using C = Chunk<kFormat, kGroup, kTurns>;
  extern __shared__ __align__(16) std::byte shared[];
  const Task& task = b.tasks[blockIdx.y];
  const int pair_begin = static_cast<int>(blockIdx.x) * b.pairs_per_block;
  const int pair_end = min(pair_begin + b.pairs_per_block, num_pairs<kGateUp>(task.rows));
  if (pair_begin < pair_end) prefetch_pair<C, kGateUp>(b, task, pair_begin);
  wait_for_previous();
  if (pair_begin >= pair_end) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int g = thread % kWarp / 4, t = thread % 4;
  const int num_chunks = (static_cast<int>(b.x.cols) + C::kCols - 1) / C::kCols;
  ChunkRing<C, kGateUp> ring(b, task, pair_begin, pair_end, num_chunks,
                             shared_address(shared) + warp * b.ring_bytes);
  auto* const all_sums = reinterpret_cast<float*>(shared + kWarps * b.ring_bytes);
  for (int pair = pair_begin; pair < pair_end; ++pair) {
    // 1. Every eighth chunk a warp.
    float total[2][4] = {};
    for (int chunk = warp; chunk < num_chunks; chunk += kWarps) {
      add_chunk<C>(ring.pop(), task.num_inputs, total);
    }
    float* const sums = all_sums + (pair - pair_begin) % 2 * sums_of_block(b.most_inputs);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int input = sum_input(t, side);
      if (input >= task.num_inputs) continue;
      *reinterpret_cast<float4*>(sums + (warp * b.most_inputs + input) * kSumStride + 4 * g) = {
          total[0][side], total[0][2 + side], total[1][side], total[1][2 + side]};
    }
    __syncthreads();
    // 2. The warps in order.
    constexpr int kOutputs = kGateUp ? quant::kTileRows : kPairRows;
    const int input = thread / kOutputs, output = thread % kOutputs;
    const int row = pair * kOutputs + output;
    if (input >= task.num_inputs || row >= task.rows) continue;
    const float* const mine = sums + input * kSumStride + output;
    float value = sum_of_warps(mine, b.most_inputs);
    if constexpr (kGateUp) {
      const float gate = rounded(b.out.dtype, value);
      const float up = rounded(b.out.dtype, sum_of_warps(mine + quant::kTileRows, b.most_inputs));
      value = __fmul_rn(quant::silu_defined(gate), up);
    }
    store(b.out, task.out_row + input, task.row_begin + row, value);
  }
}

Result<int> num_multiprocessors() {
  int device = 0, count = 0;
  RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "asking for the device"));
  RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                  "counting multiprocessors"));
  return count;
}

// How many pairs a block takes: what is soonest done where every multiprocessor has as many blocks
// as another, and a block's start and end cost about as much as three chunks of a warp.
int pairs_per_block(int pairs, std::int64_t num_tasks, int chunks_per_warp, int multiprocessors) {
  int best = 1;
  std::int64_t best_cost = 0;
  for (int count = 1; count <= pairs; ++count) {
    const std::int64_t blocks = num_tasks * ((pairs + count - 1) / count);
    const std::int64_t cost = (blocks + multiprocessors - 1) / multiprocessors *
                              (std::int64_t{count} * chunks_per_warp + 3);
    if (count == 1 || cost < best_cost) {
      best = count;
      best_cost = cost;
    }
  }
  return best;
}

Task packed(const ExpertFewTask& task) {
  Task packed{task.weight.payload,
              task.weight.scales,
              task.up.payload,
              task.up.scales,
              static_cast<std::int32_t>(task.weight.rows),
              task.row_begin,
              task.num_inputs,
              task.out_row,
              {}};
  std::copy(std::begin(task.in_rows), std::end(task.in_rows), packed.in_rows);
  return packed;
}

template <bool kGateUp>
Status run_batches(const ExpertFewParams& params, const char* name, const Stream& stream) {
  if (params.tasks.empty()) return {};
  const QuantSpec spec = params.tasks[0].weight.spec;
  CHECK(suits_expert_mma(spec, params.x) && params.out.dtype == DType::kBf16, "{}: {} of {} to {}",
        name, quant_spec_name(spec), dtype_name(params.x.dtype), dtype_name(params.out.dtype));
  ASSIGN_OR_RETURN(const int multiprocessors, num_multiprocessors());
  for (std::size_t begin = 0; begin < params.tasks.size(); begin += kTasksPerLaunch) {
    const auto tasks = params.tasks.subspan(
        begin, std::min<std::size_t>(kTasksPerLaunch, params.tasks.size() - begin));
    Batch batch;
    batch.x = params.x;
    batch.out = params.out;
    batch.most_inputs = 0;
    int pairs = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const ExpertFewTask& task = tasks[i];
      check_expert_mma(task.weight, kGateUp ? task.up : QuantView{}, spec, params.x.cols);
      CHECK(task.num_inputs > 0 && task.num_inputs <= kExpertFewRows, "{} rows", task.num_inputs);
      batch.tasks[i] = packed(task);
      batch.most_inputs = std::max(batch.most_inputs, task.num_inputs);
      pairs = std::max(pairs, num_pairs<kGateUp>(task.weight.rows));
    }
    RETURN_IF_ERROR(for_expert_spec(spec, [&](auto format, auto group) -> Status {
      using C = Chunk<decltype(format)::value, decltype(group)::value, kTurns>;
      auto* const kernel = expert_few<decltype(format)::value, decltype(group)::value, kGateUp>;
      batch.stage_bytes = stage_bytes<C>(batch.most_inputs);
      batch.stages =
          std::clamp(kRingBudget / (kWarps * batch.stage_bytes), kLeastStages, kMostStages);
      batch.ring_bytes = batch.stages * batch.stage_bytes;
      const int shared_bytes = kWarps * batch.ring_bytes + 2 * sums_of_block(batch.most_inputs) *
                                                               static_cast<int>(sizeof(float));
      RETURN_IF_ERROR(allow_shared(kernel, shared_bytes));
      const auto num_tasks = static_cast<std::int64_t>(tasks.size());
      const int chunks = static_cast<int>((params.x.cols + C::kCols - 1) / C::kCols);
      batch.pairs_per_block =
          pairs_per_block(pairs, num_tasks, (chunks + kWarps - 1) / kWarps, multiprocessors);
      const dim3 grid(blocks_for(pairs, batch.pairs_per_block), static_cast<unsigned>(num_tasks));
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
