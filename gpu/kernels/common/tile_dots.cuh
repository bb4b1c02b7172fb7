// The defined arithmetic over one tile of 16 output rows, equal to quant::dot_defined bit for bit.
//
// Group sums do not depend on each other, so they are computed side by side: a thread owns 4 rows
// and one group, reads 16 bytes a turn (4 rows x 1 dword; 4 neighbouring threads read the tile's
// whole turn) and keeps the 4 x 4 partial sums in registers. Then 16 threads per input row close
// the groups in order, one fused multiply-add each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "gpu/kernels/common/rows.cuh"
#include "quant/defined_arithmetic.h"
#include "quant/tile16.h"

namespace stoker::gpu {

inline constexpr int kTileThreads = 256;  // at most, per block
inline constexpr int kRowsPerThread = 4;
inline constexpr int kQuads = quant::kTileRows / kRowsPerThread;

// Groups that a block of `threads` sums at once.
__host__ __device__ constexpr int groups_at_once(int threads) { return threads / kQuads; }

// Enough threads for all groups or for a full block, and for closing the groups of `inputs` rows.
inline int tile_threads(const quant::Tile16& tile, int inputs) {
  const std::int64_t wanted = (tile.num_groups() * kQuads + 31) / 32 * 32;
  const int least = (quant::kTileRows * inputs + 31) / 32 * 32;
  return static_cast<int>(wanted < least ? least : wanted > kTileThreads ? kTileThreads : wanted);
}
inline int tile_shared_bytes(int threads, int inputs) {
  return groups_at_once(threads) * inputs * quant::kTileRows * static_cast<int>(sizeof(float));
}

// Inputs k .. k + 3 of one row, zeros from `cols` on.
template <typename X>
__device__ inline void load_inputs(const X* x, std::int64_t k, std::int64_t cols, bool aligned,
                                   float (&out)[4]) {
  if (aligned && k + 4 <= cols) {
    if constexpr (std::is_same_v<X, float>) {
      const float4 four = *reinterpret_cast<const float4*>(x + k);
      out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
    } else {
      const ushort4 four = *reinterpret_cast<const ushort4*>(x + k);
      out[0] = to_f32(bf16{four.x}), out[1] = to_f32(bf16{four.y});
      out[2] = to_f32(bf16{four.z}), out[3] = to_f32(bf16{four.w});
    }
    return;
  }
  for (int i = 0; i < 4; ++i) {
    if (k + i >= cols) {
      out[i] = 0.0f;
    } else if constexpr (std::is_same_v<X, float>) {
      out[i] = x[k + i];
    } else {
      out[i] = to_f32(x[k + i]);
    }
  }
}

// Whether rows of `x` may be read 4 elements at a time.
inline bool reads_aligned(const TensorView& x) {
  const auto bytes = static_cast<std::uintptr_t>(4 * dtype_bytes(x.dtype));
  return reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0 && x.row_stride % 4 == 0;
}

// Where thread i < 16 * kInputs closes groups: row i % 16 of the tile, input i / 16.
struct TileSpot {
  int row, input;
};
__device__ inline TileSpot tile_spot() {
  return {static_cast<int>(threadIdx.x) % quant::kTileRows,
          static_cast<int>(threadIdx.x) / quant::kTileRows};
}

// The dots of tile `tile_idx` of `w` with kInputs rows: the value of tile_spot() for threads below
// 16 * kInputs, 0 for others. `sums` takes tile_shared_bytes(). Ends with the block in step.
template <QuantFormat kFormat, typename X, int kInputs>
__device__ float tile_dots(const QuantView& w, std::int64_t tile_idx,
                           const X* const (&inputs)[kInputs], bool aligned, float* sums) {
  const quant::Tile16 tile{w.rows, w.cols, QuantSpec{kFormat, w.spec.group}};
  constexpr int kColsPerTurn = 32 / QuantSpec{kFormat}.element_bits();
  constexpr int kStepCols = kColsPerTurn > 4 ? kColsPerTurn : 4;
  constexpr int kTurns = kStepCols / kColsPerTurn;
  const std::int64_t num_groups = tile.num_groups();
  const int at_once = groups_at_once(static_cast<int>(blockDim.x));
  const int quad = static_cast<int>(threadIdx.x) % kQuads;
  const int slice = static_cast<int>(threadIdx.x) / kQuads;
  const std::int64_t first_row = tile_idx * quant::kTileRows;
  const TileSpot spot = tile_spot();
  float acc = 0.0f;
  for (std::int64_t first = 0; first < num_groups; first += at_once) {
    const std::int64_t group = first + slice;
    if (group < num_groups) {
      // 1. Partial sums of one group, in ascending k.
      float partial[kInputs][kRowsPerThread][4] = {};
      const std::int64_t begin = group * w.spec.group;
      const std::int64_t end =
          begin + w.spec.group < tile.padded_cols() ? begin + w.spec.group : tile.padded_cols();
      const auto* at = reinterpret_cast<const uint4*>(
          w.payload + tile.dword_offset(first_row + quad * kRowsPerThread, begin));
#pragma unroll 4
      for (std::int64_t k = begin; k < end; k += kStepCols, at += kTurns * kQuads) {
        uint4 turn[kTurns];
#pragma unroll
        for (int t = 0; t < kTurns; ++t) turn[t] = __ldg(at + t * kQuads);
        float x[kInputs][kStepCols / 4][4];
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
#pragma unroll
          for (int q = 0; q < kStepCols / 4; ++q) {
            load_inputs(inputs[i], k + 4 * q, w.cols, aligned, x[i][q]);
          }
        }
#pragma unroll
        for (int c = 0; c < kStepCols; ++c) {
          const uint4& words = turn[c / kColsPerTurn];
          const unsigned word[kRowsPerThread] = {words.x, words.y, words.z, words.w};
#pragma unroll
          for (int r = 0; r < kRowsPerThread; ++r) {
            const float value = quant::decode_element(
                kFormat, reinterpret_cast<const std::byte*>(&word[r]), c % kColsPerTurn);
#pragma unroll
            for (int i = 0; i < kInputs; ++i) {
              partial[i][r][c % 4] =
                  quant::fma_defined(value, x[i][c / 4][c % 4], partial[i][r][c % 4]);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
#pragma unroll
        for (int r = 0; r < kRowsPerThread; ++r) {
          const float(&p)[4] = partial[i][r];
          sums[(i * at_once + slice) * quant::kTileRows + quad * kRowsPerThread + r] =
              __fadd_rn(__fadd_rn(p[0], p[1]), __fadd_rn(p[2], p[3]));
        }
      }
    }
    __syncthreads();
    // 2. The groups in order.
    if (spot.input < kInputs) {
      for (std::int64_t g = first; g < num_groups && g < first + at_once; ++g) {
        float scale = 1.0f;
        if constexpr (QuantSpec{kFormat}.has_scales()) {
          scale = quant::decode_scale(kFormat, w.scales,
                                      tile.scale_index(first_row + spot.row, g * w.spec.group));
        }
        acc = quant::fma_defined(
            sums[(spot.input * at_once + (g - first)) * quant::kTileRows + spot.row], scale, acc);
      }
    }
    __syncthreads();
  }
  return acc;
}

// Calls f(integral_constant<QuantFormat>, X{}) for the weight's format and the inputs' type.
template <typename F>
void for_format_and_input(QuantFormat format, DType input, F&& f) {
  const auto with_input = [&](auto constant) {
    if (input == DType::kF32) {
      f(constant, float{});
    } else {
      f(constant, bf16{});
    }
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
}

// A weight that tile_dots() can read.
inline void check_tiled(const QuantView& w, const char* what) {
  CHECK(w.layout == WeightLayout::kTile16 && w.device != kHost, "{}: not tile16 on a device", what);
  CHECK(w.spec.group > 0 && w.spec.group % 8 == 0, "{}: groups of {}", what, w.spec.group);
  CHECK(reinterpret_cast<std::uintptr_t>(w.payload) % 16 == 0, "{}: payload not aligned", what);
  CHECK(!w.spec.has_scales() || w.scales != nullptr, "{}: no scales", what);
}

}  // namespace stoker::gpu
