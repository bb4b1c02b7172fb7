// Routed experts of prefill on tensor cores: gate, up and down for BF16 inputs, every row of every
// expert in one launch.
//
// Arithmetic, which depends on the shape alone: a weight is its code times its scale, rounded to
// BF16 (as those of dense linears are: widen.cu); tensor cores sum a row's products from zero, two
// products of 16 columns at a time, columns ascending by 32. How many rows there are, and where in
// a tile of inputs a row stands, touches no bit.
//
// A block multiplies four pairs of weight tiles (64 rows of gate and of up, or 128 of down), one a
// warp, with up to 128 rows of inputs, which it gathers. A warp unpacks its weights in registers,
// so every weight is unpacked once a block; inputs are shared. Both come through a ring of 64
// columns a stage.
#include "gpu/error.h"
#include "gpu/kernels/common/expert_tiles.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"
#include "gpu/native.h"
#include "quant/defined_arithmetic.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = kExpertManyPairs;
constexpr int kThreads = kWarps * kWarp;
constexpr int kCols = 64;  // of a stage
constexpr int kStages = 3;
constexpr int kPieces = kCols / 8;  // of a row of inputs
constexpr int kInputBytes = kExpertManyRows * kCols * static_cast<int>(sizeof(bf16));
constexpr int kRowsPerCopy = kThreads / kPieces;
static_assert(kRowsPerCopy % 2 == 0);

template <QuantFormat kFormat, int kGroup>
using StageChunk = Chunk<kFormat, kGroup, kCols / kPerWord<kFormat>>;

template <typename C>
inline constexpr int kStageBytes = kWarps * C::kBytes + kInputBytes;

template <typename C>
inline constexpr int kRingBytes = kStages * kStageBytes<C>;

// What a block works on, in shared memory: registers are full of sums.
struct Job {
  ExpertManyItem item;
  std::int32_t num_outputs, first_output;  // rows of the task
  TilePair tiles[kWarps];
  const bf16* rows[kExpertManyRows];  // of inputs
};

struct Params {
  ExpertManyParams p;
  bool aligned;  // outputs may be stored four at a time
};

// The pairs' scales, as registers take them: of one row's pairs of columns.
template <typename C>
struct Scales {
  __nv_bfloat162 high[4], low;  // low: what BF16 leaves of an F32 scale

  __device__ void read(unsigned at, int unit, int g) {
    if constexpr (C::kSpec.is_integer()) {
      const uint2 four = read_integer_scales<C>(at, unit / C::kUnitsPerGroup, g);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        high[r] = as_values(__byte_perm(r < 2 ? four.x : four.y, 0, r % 2 == 0 ? 0x1010 : 0x3232));
      }
    } else if constexpr (C::kSpec.has_scales()) {
      const float scale = read_tile_scale<C>(at, g);
      const float upper = round_to_bf16(scale);
      high[0] = __float2bfloat162_rn(upper);
      low = __float2bfloat162_rn(__fsub_rn(scale, upper));
    }
  }

  __device__ void apply(BfPair (&w)[4][4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const __nv_bfloat162 codes = as_values(w[r][i]);
        if constexpr (C::kSpec.is_integer()) {
          w[r][i] = as_pair(__hmul2(codes, high[r]));
        } else if constexpr (C::kSpec.has_scales()) {
          w[r][i] = as_pair(__hfma2(codes, high[0], __hmul2(codes, low)));
        }
      }
    }
  }
};

// sums[m][n] += the stage's columns: this warp's weights at `weights`, and the inputs.
template <typename C, int kEights>
__device__ void add_stage(unsigned weights, unsigned inputs, float (&sums)[2][kEights][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int u = 0; u < C::kUnits; ++u) {
    BfPair w[4][4];
    read_weights<C>(weights, u, g, t, w);
    Scales<C> scales;
    scales.read(weights, u, g);
    scales.apply(w);
    const unsigned input_at = inputs + staged_input(kPieces, g, unit_piece(u, t)) * kPieceBytes;
    const auto input = [&](int n) { return read_16(input_at + n * kMmaN * kPieces * kPieceBytes); };
#pragma unroll
    for (int n = 0; n < kEights; n += 2) {
      const uint4 even = input(n), odd = input(n + 1);
      multiply<0, 0>(sums[0][n], w, even);
      multiply<1, 0>(sums[1][n], w, even);
      multiply<0, 0>(sums[0][n + 1], w, odd);
      multiply<1, 0>(sums[1][n + 1], w, odd);
      multiply<0, 1>(sums[0][n], w, even);
      multiply<1, 1>(sums[1][n], w, even);
      multiply<0, 1>(sums[0][n + 1], w, odd);
      multiply<1, 1>(sums[1][n + 1], w, odd);
    }
  }
}

// Four neighbouring outputs of a row.
__device__ void store_four(const Params& params, std::int64_t row, int col, int num_cols,
                           const float (&values)[4]) {
  auto* const to = static_cast<bf16*>(params.p.out.data) + row * params.p.out.row_stride + col;
  if (params.aligned && num_cols >= 4) {
    *reinterpret_cast<uint2*>(to) = {pack_bf16(values[0], values[1]),
                                     pack_bf16(values[2], values[3])};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < num_cols) to[i] = to_bf16(values[i]);
  }
}

// Down: a lane has four outputs of two inputs in every eight.
template <int kEights>
__device__ void store_down(const Params& params, const Job& job, int pair,
                           const float (&sums)[2][kEights][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int row = pair * kPairRows + sum_row(g, 0, 0);
#pragma unroll
  for (int n = 0; n < kEights; ++n) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int input = n * kMmaN + sum_input(t, side);
      if (input >= job.item.num_rows) continue;
      const float values[4] = {sums[0][n][side], sums[0][n][2 + side], sums[1][n][side],
                               sums[1][n][2 + side]};
      store_four(params, job.item.first_slot + input, job.first_output + row, job.num_outputs - row,
                 values);
    }
  }
}

// Gate and up: lane 4g + t has gates (g < 4), and lane 4 (g + 4) + t the ups beside them. They swap
// halves: the first finishes the lower half of the inputs, the second the upper.
template <int kEights>
__device__ void store_gate_up(const Params& params, const Job& job, int pair,
                              const float (&sums)[2][kEights][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const bool has_gates = g < 4;
  const int row = pair * quant::kTileRows + sum_row(g % 4, 0, 0);
  constexpr int kHalf = kEights / 2;
#pragma unroll
  for (int n = 0; n < kHalf; ++n) {
    float hidden[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float lower = sums[m][n][e], upper = sums[m][n + kHalf][e];
        const float other = __shfl_xor_sync(kAllLanes, has_gates ? upper : lower, kWarp / 2);
        const float gate = round_to_bf16(has_gates ? lower : other);
        const float up = round_to_bf16(has_gates ? other : upper);
        hidden[m][e] = __fmul_rn(quant::silu_defined(gate), up);
      }
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int input = (has_gates ? n : n + kHalf) * kMmaN + sum_input(t, side);
      if (input >= job.item.num_rows) continue;
      const float values[4] = {hidden[0][side], hidden[0][2 + side], hidden[1][side],
                               hidden[1][2 + side]};
      store_four(params, job.item.first_slot + input, job.first_output + row, job.num_outputs - row,
                 values);
    }
  }
}

// An item with at most 8 kEights rows of inputs.
template <typename C, bool kGateUp, int kEights>
__device__ void multiply_item(const Params& params, const Job& job, unsigned ring) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int cols = static_cast<int>(params.p.x.cols);
  const int num_turns = (cols + kPerWord<C::kFormat> - 1) / kPerWord<C::kFormat>;
  const int num_rows = job.item.num_rows;
  const int num_chunks = (cols + kCols - 1) / kCols;
  const auto stage = [&](int slot) { return ring + slot * kStageBytes<C>; };
  const auto push = [&](int chunk, int slot) {
    if (chunk < num_chunks) {
      const unsigned to = stage(slot);
      const TilePair& tiles = job.tiles[warp];
      copy_chunk<C>(to + warp * C::kBytes, lane_sources<C>(tiles, chunk, lane),
                    num_turns - chunk * C::kTurns, tiles.has, lane);
      const int row = thread / kPieces, piece = thread % kPieces;
      const unsigned input_to = to + kWarps * C::kBytes + staged_input(kPieces, row, piece) * 16;
      const int col = chunk * kCols + piece * 8;
      const bool valid = col < cols;
#pragma unroll 4
      for (int i = 0; i < kEights * kMmaN / kRowsPerCopy; ++i) {
        const int at = row + i * kRowsPerCopy;
        copy_piece_async(input_to + i * kRowsPerCopy * kPieces * kPieceBytes, job.rows[at] + col,
                         valid, at < num_rows);
      }
    }
    commit_copies();
  };
  float sums[2][kEights][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) push(i, i);
  int slot = 0;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    wait_for_all_copies_but<kStages - 2>();
    __syncthreads();
    // The stage before this one has been read by everyone, and takes what is asked for next.
    push(chunk + kStages - 1, slot == 0 ? kStages - 1 : slot - 1);
    add_stage<C, kEights>(stage(slot) + warp * C::kBytes, stage(slot) + kWarps * C::kBytes, sums);
    slot = slot + 1 < kStages ? slot + 1 : 0;
  }
  const int pair = job.item.first_pair + warp;
  if (!job.tiles[warp].has[0]) return;
  if constexpr (kGateUp) {
    store_gate_up<kEights>(params, job, pair, sums);
  } else {
    store_down<kEights>(params, job, pair, sums);
  }
}

template <QuantFormat kFormat, int kGroup, bool kGateUp>
__global__ void __launch_bounds__(kThreads, 2) expert_many(const __grid_constant__ Params params) {
  using C = StageChunk<kFormat, kGroup>;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ Job job;
  const ExpertManyParams& p = params.p;
  const ExpertManyItem item = p.items[blockIdx.x];
  static_assert(kThreads == kExpertManyRows);
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = item.first_slot + min(thread, item.num_rows - 1);
  const std::int64_t row = p.slot_rows == nullptr ? slot : p.slot_rows[slot];
  job.rows[thread] = static_cast<const bf16*>(p.x.data) + row * p.x.row_stride;
  const ExpertManyTask& task = p.tasks[item.task];
  if (thread < kWarps) {
    job.tiles[thread] =
        tiles_of<kGateUp>(task, tile_sizes<kFormat, kGroup>(p.x.cols), item.first_pair + thread);
  }
  if (thread == 0) {
    job.item = item;
    job.num_outputs = task.rows;
    job.first_output = task.row_begin;
  }
  __syncthreads();
  const unsigned ring = shared_address(shared);
  // Inputs are multiplied by the eight, and eights that hold none cost what others do.
  if (item.num_rows > 96) {
    multiply_item<C, kGateUp, 16>(params, job, ring);
  } else if (item.num_rows > 64) {
    multiply_item<C, kGateUp, 12>(params, job, ring);
  } else if (item.num_rows > 32) {
    multiply_item<C, kGateUp, 8>(params, job, ring);
  } else {
    multiply_item<C, kGateUp, 4>(params, job, ring);
  }
}

template <bool kGateUp>
Status run(const ExpertManyParams& p, const char* name, const Stream& stream) {
  if (p.num_items == 0) return {};
  CHECK(suits_expert_mma(p.spec, p.x) && p.out.dtype == DType::kBf16, "{}: {} of {} to {}", name,
        quant_spec_name(p.spec), dtype_name(p.x.dtype), dtype_name(p.out.dtype));
  Params params{p,
                reinterpret_cast<std::uintptr_t>(p.out.data) % 8 == 0 && p.out.row_stride % 4 == 0};
  return for_expert_spec(p.spec, [&](auto format, auto group) -> Status {
    using C = StageChunk<decltype(format)::value, decltype(group)::value>;
    auto* const kernel = expert_many<decltype(format)::value, decltype(group)::value, kGateUp>;
    RETURN_IF_ERROR(allow_shared(kernel, kRingBytes<C>));
    kernel<<<static_cast<unsigned>(p.num_items), kThreads, kRingBytes<C>, native(stream)>>>(params);
    return launch_status(name);
  });
}

}  // namespace

Status launch_expert_gate_up_many(const ExpertManyParams& params, const Stream& stream) {
  CHECK(params.slot_rows != nullptr || params.num_items == 0, "no rows of inputs");
  return run<true>(params, "expert gate and up of many rows", stream);
}

Status launch_expert_down_many(const ExpertManyParams& params, const Stream& stream) {
  CHECK(params.slot_rows == nullptr, "inputs of down are those of the slots");
  return run<false>(params, "expert down of many rows", stream);
}

}  // namespace stoker::gpu
