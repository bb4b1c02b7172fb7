// The defined arithmetic over one tile of 16 output rows, equal to quant::dot_defined bit for bit.
//
// Group sums do not depend on each other, so they are computed side by side: a thread owns 4 rows
// and one group, reads 16 bytes a turn (4 rows x 1 dword; 4 neighbouring threads read the tile's
// whole turn) and keeps the 4 x 4 partial sums in registers. Then 16 threads per matrix and input
// row close the groups in order, one fused multiply-add each, while the others go on. All operands
// go through shared memory: weights in a ring of each thread's own, so that some are on their way
// whatever the block is doing; inputs because the four threads of a group need them; scales so that
// closing waits for no memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gpu/error.h"
#include "gpu/kernels/common/copy_async.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/unpack.cuh"
#include "quant/defined_arithmetic.h"
#include "quant/tile16.h"

namespace stoker::gpu {

inline constexpr int kTileThreads = 256;  // at most, per block
inline constexpr int kRowsPerThread = 4;
inline constexpr int kQuads = quant::kTileRows / kRowsPerThread;
inline constexpr std::int64_t kMostGroup = 128;
inline constexpr int kBatchTurns = 4;                               // 64 bytes a thread
inline constexpr int kRingBatches = 3;                              // two on their way, one in use
inline constexpr int kRingBytes = kRingBatches * kBatchTurns * 16;  // of a thread
inline constexpr unsigned kWarpTurnBytes = 32 * 16;                 // of a warp
inline constexpr unsigned kWarpBatchBytes = kBatchTurns * kWarpTurnBytes;

// How a block goes over a tile: `slices` groups at once, so many times over that the last time has
// about as many as the others.
struct TilePlan {
  int slices = 0;
  int threads = 0;
  int shared_bytes = 0;
};

// What inputs are in shared memory. INT4 is bound by instructions and takes them as they are
// multiplied; other formats are bound by memory, and by the blocks that have room.
template <QuantFormat kFormat, typename X, int kInputs>
using StagedInput = std::conditional_t<kFormat == QuantFormat::kInt4 && kInputs == 1, float, X>;

// Elements between the inputs of neighbouring groups in shared memory: 16 bytes of padding, so that
// the slices of a warp read different banks.
template <typename Staged>
__host__ __device__ constexpr int group_stride(int group) {
  return group + 16 / static_cast<int>(sizeof(Staged));
}

template <typename X, typename Staged>
TilePlan tile_plan(const quant::Tile16& tile, int inputs, int matrices) {
  // Shared memory grows with inputs x slices, and some devices have 99 KiB.
  const int most_threads = inputs == 1 ? kTileThreads : kTileThreads / static_cast<int>(sizeof(X));
  const int most = most_threads / kQuads;
  const int num_groups = static_cast<int>(tile.num_groups());
  const int passes = (num_groups + most - 1) / most;
  TilePlan plan;
  plan.slices = (num_groups + passes - 1) / passes;
  const int least = quant::kTileRows * matrices * inputs;  // for closing
  plan.threads = (std::max(plan.slices * kQuads, least) + 31) / 32 * 32;
  const int values = matrices * plan.slices * quant::kTileRows * (inputs + 1);
  const int staged = inputs * plan.slices * group_stride<Staged>(tile.spec.group);
  plan.shared_bytes = plan.threads * kRingBytes + values * static_cast<int>(sizeof(float)) +
                      staged * static_cast<int>(sizeof(Staged));
  return plan;
}

// Whether rows of `x` may be read 4 elements at a time.
inline bool reads_aligned(const TensorView& x) {
  const auto bytes = static_cast<std::uintptr_t>(4 * dtype_bytes(x.dtype));
  return reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 && x.row_stride % 4 == 0;
}

template <typename X>
using FourOf = std::conditional_t<std::is_same_v<X, float>, float4, ushort4>;

// Inputs k .. k + 3 of one row, zeros from `cols` on.
template <typename X>
__device__ inline FourOf<X> load_four(const X* x, std::int64_t k, std::int64_t cols, bool aligned) {
  if (aligned && k + 4 <= cols) return *reinterpret_cast<const FourOf<X>*>(x + k);
  X four[4] = {};
  for (int i = 0; i < 4; ++i) {
    if (k + i < cols) four[i] = x[k + i];
  }
  FourOf<X> out;
  memcpy(&out, four, sizeof out);
  return out;
}

// Four inputs to shared memory.
template <typename X, typename Staged>
__device__ inline void write_four(const FourOf<X>& four, Staged* dst) {
  if constexpr (std::is_same_v<X, Staged>) {
    *reinterpret_cast<FourOf<X>*>(dst) = four;
  } else {
    uint2 pairs;
    memcpy(&pairs, &four, sizeof pairs);
    *reinterpret_cast<float4*>(dst) = {low_half(pairs.x), high_half(pairs.x), low_half(pairs.y),
                                       high_half(pairs.y)};
  }
}

// Inputs of one group of columns, by the threads of its slice: only they read them.
template <typename X, typename Staged>
__device__ inline void stage_group(const X* x, std::int64_t first_col, int group_cols,
                                   std::int64_t cols, bool aligned, Staged* dst) {
  const int quad = static_cast<int>(threadIdx.x) % kQuads;
  constexpr int kBatch = 4;  // on their way at once
  constexpr int kBatchCols = 4 * kBatch * kQuads;
  int col = 4 * quad;
  if (aligned && first_col + group_cols <= cols) {
    for (; col + kBatchCols <= group_cols + 4 * quad; col += kBatchCols) {
      FourOf<X> batch[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        batch[b] = *reinterpret_cast<const FourOf<X>*>(x + first_col + col + 4 * kQuads * b);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) write_four<X>(batch[b], dst + col + 4 * kQuads * b);
    }
  }
#pragma unroll 1
  for (; col < group_cols; col += 4 * kQuads) {
    write_four<X>(load_four(x, first_col + col, cols, aligned), dst + col);
  }
}
// Of the threads of this thread's slice.
__device__ inline void sync_slice() {
  constexpr unsigned kSlice = (1u << kQuads) - 1;
  __syncwarp(kSlice << (threadIdx.x % 32 / kQuads * kQuads));
}

// kCount (4 or 8) inputs in shared memory.
template <int kCount, typename X>
__device__ inline void read_inputs(const X* shared, float (&out)[kCount]) {
#pragma unroll
  for (int q = 0; q < kCount / 4; ++q) {
    if constexpr (std::is_same_v<X, float>) {
      const float4 four = *reinterpret_cast<const float4*>(shared + 4 * q);
      out[4 * q] = four.x, out[4 * q + 1] = four.y;
      out[4 * q + 2] = four.z, out[4 * q + 3] = four.w;
    } else {
      const uint2 four = *reinterpret_cast<const uint2*>(shared + 4 * q);
      out[4 * q] = low_half(four.x), out[4 * q + 1] = high_half(four.x);
      out[4 * q + 2] = low_half(four.y), out[4 * q + 3] = high_half(four.y);
    }
  }
}

// Scales of 4 neighbouring rows, the first of which is number `index`.
template <QuantFormat kFormat>
__device__ inline float4 load_scales(const QuantView& w, std::int64_t index) {
  if constexpr (QuantSpec{kFormat}.is_integer()) {
    const auto four = __ldg(reinterpret_cast<const uint2*>(w.scales + index * 2));
    return {low_half(four.x), high_half(four.x), low_half(four.y), high_half(four.y)};
  } else {
    const float one = quant::decode_scale(kFormat, w.scales, index);
    return {one, one, one, one};
  }
}
// From a group's scales to the next one's.
template <QuantFormat kFormat>
inline constexpr int kScaleStep = QuantSpec{kFormat}.is_integer() ? quant::kTileRows : 1;

// The weights that one thread will use, in order: for every tile, pass and matrix, the turns of the
// thread's group, a batch at a time. push() asks for the next batch, pop() waits for the oldest.
template <QuantFormat kFormat, int kMatrices>
class WeightRing {
 public:
  // `ring`: kRingBytes for each thread of the block.
  __device__ WeightRing(const QuantView* const (&matrices)[kMatrices], const quant::Tile16& tile,
                        std::int64_t first_row, int num_tiles, int slices, std::byte* ring)
      : tile_bytes_(static_cast<unsigned>(tile.tile_bytes())),
        num_groups_(static_cast<int>(tile.num_groups())),
        group_cols_(tile.spec.group),
        padded_cols_(static_cast<int>(tile.padded_cols())),
        tiles_left_(static_cast<int>(threadIdx.x) / kQuads < slices ? num_tiles : 0),
        slices_(slices),
        group_(static_cast<int>(threadIdx.x) / kQuads),
        slots_(shared_address(ring) + threadIdx.x / 32 * kRingBatches * kWarpBatchBytes +
               threadIdx.x % 32 * 16) {
    const int quad = static_cast<int>(threadIdx.x) % kQuads;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      rows_[m] = matrices[m]->payload + tile.dword_offset(first_row + quad * kRowsPerThread, 0);
    }
    begin_group();
#pragma unroll
    for (int i = 0; i < kRingBatches - 1; ++i) push();
  }

  __device__ void push() {
    if (tiles_left_ > 0) {
      const unsigned to = slots_ + pushed_;
      if (turns_left_ >= kBatchTurns) {
        copy_turns<kBatchTurns>(to, kBatchTurns);
      } else {
        copy_turns<kBatchTurns - 1>(to, turns_left_);
      }
      next_ += kBatchTurns * kTurnBytes;
      turns_left_ -= kBatchTurns;
      if (turns_left_ <= 0) {
        next_group();
        begin_group();
      }
    }
    commit_copies();
    pushed_ = after(pushed_);
  }

  // The batch before is given up: its place takes what the next push() asks for.
  __device__ void pop() {
    popped_ = after(popped_);
    wait_for_all_copies_but<kRingBatches - 2>();
  }
  __device__ uint4 turn(int t) const { return read_16(slots_ + popped_ + t * kWarpTurnBytes); }

 private:
  static constexpr int kTurnBytes = quant::kTileRows * 4;

  __device__ static unsigned after(unsigned batch) {
    return batch == (kRingBatches - 1) * kWarpBatchBytes ? 0 : batch + kWarpBatchBytes;
  }
  // The first `count` of kMost turns.
  template <int kMost>
  __device__ void copy_turns(unsigned to, int count) const {
#pragma unroll
    for (int t = 0; t < kMost; ++t) {
      if (kMost == kBatchTurns || t < count) {
        copy_16_async(to + t * kWarpTurnBytes, next_ + t * kTurnBytes);
      }
    }
  }
  __device__ void next_group() {
    if (++matrix_ < kMatrices) return;
    matrix_ = 0;
    group_ += slices_;
    if (group_ < num_groups_) return;
    group_ = static_cast<int>(threadIdx.x) / kQuads;
    --tiles_left_;
#pragma unroll
    for (const std::byte*& rows : rows_) rows += tile_bytes_;
  }
  __device__ void begin_group() {
    const int begin = group_ * group_cols_;
    turns_left_ = min(padded_cols_ - begin, group_cols_) / kPerWord<kFormat>;
    next_ = (matrix_ == 0 ? rows_[0] : rows_[kMatrices - 1]) +
            static_cast<unsigned>(begin / kPerWord<kFormat> * kTurnBytes);
  }

  const unsigned tile_bytes_;
  const int num_groups_, group_cols_, padded_cols_;
  const std::byte* rows_[kMatrices];
  const std::byte* next_;  // of what is pushed next
  int turns_left_;         // of its group
  int tiles_left_;
  int slices_, group_, matrix_ = 0;
  // Bytes of shared memory: where batches are in the ring, and where that is.
  unsigned pushed_ = 0, popped_ = (kRingBatches - 1) * kWarpBatchBytes;
  const unsigned slots_;
};

// Adds the products of one batch of turns, in ascending k. `shared` holds the inputs of its
// columns, those of the next row of x `input_stride` further on; num_cols: what is left of the
// group. kWhole: that is a batch or more.
template <QuantFormat kFormat, int kInputs, bool kWhole, typename Staged, typename Ring>
__device__ inline void add_batch(const Ring& ring, int num_cols, const Staged* shared,
                                 int input_stride, float (&partial)[kInputs][kRowsPerThread][4]) {
  constexpr int kStepCols = kPerWord<kFormat> > 4 ? kPerWord<kFormat> : 4;
  constexpr int kTurns = kStepCols / kPerWord<kFormat>;
#pragma unroll
  for (int s = 0; s < kBatchTurns / kTurns; ++s) {
    if (!kWhole && s * kStepCols >= num_cols) break;
    float weight[kRowsPerThread][kStepCols];
#pragma unroll
    for (int t = 0; t < kTurns; ++t) {
      const uint4 turn = ring.turn(s * kTurns + t);
      const unsigned words[kRowsPerThread] = {turn.x, turn.y, turn.z, turn.w};
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
        float values[kPerWord<kFormat>];
        unpack<kFormat>(words[r], values);
#pragma unroll
        for (int c = 0; c < kPerWord<kFormat>; ++c) {
          weight[r][t * kPerWord<kFormat> + c] = values[c];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      float x[kStepCols];
      read_inputs(shared + i * input_stride + s * kStepCols, x);
#pragma unroll
      for (int c = 0; c < kStepCols; ++c) {
#pragma unroll
        for (int r = 0; r < kRowsPerThread; ++r) {
          partial[i][r][c % 4] = quant::fma_defined(weight[r][c], x[c], partial[i][r][c % 4]);
        }
      }
    }
  }
}

// Where a thread closes groups: row of the tile, matrix, and input, of which there are kInputs.
struct TileSpot {
  int row, matrix, input;
};
template <int kMatrices>
__device__ inline TileSpot tile_spot() {
  constexpr int kRows = quant::kTileRows;
  const int thread = static_cast<int>(threadIdx.x);
  return {thread % kRows, thread / kRows % kMatrices, thread / (kMatrices * kRows)};
}

// What closing a pass takes, in shared memory: sums [kMatrices][kInputs][slices][16] and scales
// [kMatrices][slices][16].
template <QuantFormat kFormat, int kInputs, int kMatrices>
struct ClosedLater {
  static constexpr bool kHasScales = QuantSpec{kFormat}.has_scales();
  float *sums, *scales;
  int slices;

  __device__ ClosedLater(std::byte* shared, int num_slices)
      : sums(reinterpret_cast<float*>(shared)),
        scales(sums + kMatrices * kInputs * num_slices * quant::kTileRows),
        slices(num_slices) {}
  __device__ std::byte* end() const {
    return reinterpret_cast<std::byte*>(scales + kMatrices * slices * quant::kTileRows);
  }
  __device__ float* sums_of(int matrix, int input) const {
    return sums + (matrix * kInputs + input) * slices * quant::kTileRows;
  }
  __device__ float* scales_of(int matrix) const {
    return scales + matrix * slices * quant::kTileRows;
  }

  // Four rows of a slice, from `at` on.
  __device__ void store(int matrix, int at, const float (&partial)[kInputs][kRowsPerThread][4],
                        const float4& scale) const {
    if constexpr (kHasScales) *reinterpret_cast<float4*>(scales_of(matrix) + at) = scale;
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      float sum[kRowsPerThread];
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
        const float(&p)[4] = partial[i][r];
        sum[r] = __fadd_rn(__fadd_rn(p[0], p[1]), __fadd_rn(p[2], p[3]));
      }
      *reinterpret_cast<float4*>(sums_of(matrix, i) + at) = {sum[0], sum[1], sum[2], sum[3]};
    }
  }
  // Adds the groups of the first `count` slices in order.
  __device__ void close(const TileSpot& spot, int count, float& dot) const {
    const float* const mine = sums_of(spot.matrix, spot.input) + spot.row;
    const float* const my_scales = scales_of(spot.matrix) + spot.row;
#pragma unroll 8
    for (int g = 0; g < count; ++g) {
      const float scale = kHasScales ? my_scales[g * quant::kTileRows] : 1.0f;
      dot = quant::fma_defined(mine[g * quant::kTileRows], scale, dot);
    }
  }
};

// Adds the products of the ring's next group, of `num_cols` columns.
template <QuantFormat kFormat, int kInputs, typename Staged, typename Ring>
__device__ inline void add_group(Ring& ring, int num_cols, const Staged* staged, int input_stride,
                                 float (&partial)[kInputs][kRowsPerThread][4]) {
  constexpr int kBatchCols = kBatchTurns * kPerWord<kFormat>;
  for (int left = num_cols; left > 0; left -= kBatchCols, staged += kBatchCols) {
    ring.pop();
    ring.push();
    if (left >= kBatchCols) {
      add_batch<kFormat, kInputs, true>(ring, left, staged, input_stride, partial);
    } else {
      add_batch<kFormat, kInputs, false>(ring, left, staged, input_stride, partial);
    }
  }
}

// The dots of tiles [tile_begin, tile_end) of kMatrices matrices of one shape with kInputs rows:
// emit(spot, tile, dots) is called by the threads that hold them: those whose spot has the first
// matrix and an input below kInputs. `shared` takes tile_plan()'s bytes. Asks for the first
// weights, then calls wait_for_previous().
template <QuantFormat kFormat, typename X, int kInputs, int kMatrices, typename Emit>
__device__ void tile_dots(const QuantView* const (&matrices)[kMatrices], std::int64_t tile_begin,
                          std::int64_t tile_end, const X* const (&inputs)[kInputs], bool aligned,
                          int slices, std::byte* shared, Emit&& emit) {
  using Staged = StagedInput<kFormat, X, kInputs>;
  static_assert(kMatrices == 1 || (kMatrices == 2 && 2 * quant::kTileRows == 32));  // of a warp
  const QuantView& shape = *matrices[0];
  const int group_cols = shape.spec.group;
  const quant::Tile16 tile{shape.rows, shape.cols, QuantSpec{kFormat, group_cols}};
  const int num_groups = static_cast<int>(tile.num_groups());
  const int slice = static_cast<int>(threadIdx.x) / kQuads;
  const int row = static_cast<int>(threadIdx.x) % kQuads * kRowsPerThread;  // the first of four
  const TileSpot spot = tile_spot<kMatrices>();
  // Shared memory: the ring, what is closed later, inputs.
  WeightRing<kFormat, kMatrices> ring(matrices, tile, tile_begin * quant::kTileRows,
                                      static_cast<int>(tile_end - tile_begin), slices, shared);
  const ClosedLater<kFormat, kInputs, kMatrices> closed(shared + blockDim.x * kRingBytes, slices);
  const int input_stride = slices * group_stride<Staged>(group_cols);
  Staged* const staged =
      reinterpret_cast<Staged*>(closed.end()) + slice * group_stride<Staged>(group_cols);
  wait_for_previous();
  for (std::int64_t tile_idx = tile_begin; tile_idx < tile_end; ++tile_idx) {
    float dot = 0.0f;  // of the spot
    const std::int64_t first_scale = tile.scale_index(tile_idx * quant::kTileRows + row, 0);
    for (int first = 0; first < num_groups; first += slices) {
      const int count = num_groups - first < slices ? num_groups - first : slices;
      const int group = first + slice;
      const bool has_group = slice < count;
      // 1. The inputs of the group, unless they are there: one pass holds all.
      if (has_group && (tile_idx == tile_begin || slices < num_groups)) {
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
          stage_group(inputs[i], std::int64_t{group} * group_cols, group_cols, shape.cols, aligned,
                      staged + i * input_stride);
        }
        sync_slice();
      }
      // 2. Its sums.
      const int num_cols =
          min(static_cast<int>(tile.padded_cols()) - group * group_cols, group_cols);
#pragma unroll 1
      for (int m = 0; m < kMatrices; ++m) {
        float4 scale;
        float partial[kInputs][kRowsPerThread][4] = {};
        if (has_group) {
          if constexpr (QuantSpec{kFormat}.has_scales()) {
            scale = load_scales<kFormat>(m == 0 ? *matrices[0] : *matrices[kMatrices - 1],
                                         first_scale + group * kScaleStep<kFormat>);
          }
          add_group<kFormat, kInputs>(ring, num_cols, staged, input_stride, partial);
        }
        if (m == 0) __syncthreads();  // the groups before are closed
        if (has_group) closed.store(m, slice * quant::kTileRows + row, partial, scale);
      }
      __syncthreads();
      // 3. The groups in order.
      if (spot.input < kInputs) closed.close(spot, count, dot);
    }
    if (spot.input >= kInputs) continue;
    float dots[kMatrices] = {dot};
    if constexpr (kMatrices == 2) {
      dots[1] = __shfl_down_sync(0xffffffffu, dot, quant::kTileRows);
    }
    if (spot.matrix == 0) emit(spot, tile_idx, dots);
  }
}

// What f(integral_constant<QuantFormat>, X{}) returns for the weight's format and the inputs' type.
template <typename F>
Status for_format_and_input(QuantFormat format, DType input, F&& f) {
  const auto with_input = [&](auto constant) -> Status {
    return input == DType::kF32 ? f(constant, float{}) : f(constant, bf16{});
  };
  switch (format) {
    case QuantFormat::kF32:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kF32>{});
    case QuantFormat::kF16:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kF16>{});
    case QuantFormat::kBf16:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kBf16>{});
    case QuantFormat::kF8E4m3B128:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kF8E4m3B128>{});
    case QuantFormat::kInt8:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kInt8>{});
    case QuantFormat::kInt4:
      return with_input(std::integral_constant<QuantFormat, QuantFormat::kInt4>{});
  }
  return {};
}

// A weight that tile_dots() can read.
inline void check_tiled(const QuantView& w, const char* what) {
  CHECK(w.layout == WeightLayout::kTile16 && w.device != kHost, "{}: not tile16 on a device", what);
  CHECK(w.spec.group > 0 && w.spec.group % 8 == 0 && w.spec.group <= kMostGroup, "{}: groups of {}",
        what, w.spec.group);
  CHECK(reinterpret_cast<std::uintptr_t>(w.payload) % 16 == 0, "{}: payload not aligned", what);
  CHECK(!w.spec.has_scales() ||
            (w.scales != nullptr && reinterpret_cast<std::uintptr_t>(w.scales) % 8 == 0),
        "{}: no scales, or not aligned", what);
}

}  // namespace stoker::gpu
