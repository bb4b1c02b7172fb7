// Pairs of weight tiles on their way to tensor cores: into shared memory by one warp, and out of it
// as BF16 (expert_places.h says where what stands).
#pragma once

#include "gpu/error.h"
#include "gpu/kernels/common/copy_async.cuh"
#include "gpu/kernels/common/expert_places.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/unpack.cuh"

namespace stoker::gpu {

// The bytes of two tiles, from their first turn and group on. A tile that is not there has the
// other's addresses, which are not read.
struct TilePair {
  const std::byte *payload[2], *scales[2];
  bool has[2];
};

// What all tiles of a matrix share.
struct TileSizes {
  int num_turns, num_groups;
  std::int64_t tile_bytes, tile_scale_bytes;
};
template <QuantFormat kFormat, int kGroup>
__device__ inline TileSizes tile_sizes(std::int64_t cols) {
  const quant::Tile16 tile{quant::kTileRows, cols, QuantSpec{kFormat, kGroup}};
  return {static_cast<int>(tile.num_turns()), static_cast<int>(tile.num_groups()),
          tile.tile_bytes(), tile.tile_scale_bytes()};
}

// Pair `pair` of a task: tile `pair` of gate and of up, or tiles 2 pair and 2 pair + 1 of down.
template <bool kGateUp, typename Task>
__device__ inline TilePair tiles_of(const Task& task, const TileSizes& sizes, int pair) {
  const int num_tiles = (task.rows + quant::kTileRows - 1) / quant::kTileRows;
  const int first = kGateUp ? pair : 2 * pair;
  TilePair tiles;
  tiles.has[0] = first < num_tiles;
  tiles.has[1] = first + (kGateUp ? 0 : 1) < num_tiles;
  const std::int64_t from = tiles.has[0] ? first : 0;
  tiles.payload[0] = task.payload + from * sizes.tile_bytes;
  tiles.scales[0] = task.scales + from * sizes.tile_scale_bytes;
  if constexpr (kGateUp) {
    tiles.payload[1] = task.up_payload + from * sizes.tile_bytes;
    tiles.scales[1] = task.up_scales + from * sizes.tile_scale_bytes;
  } else {
    tiles.payload[1] = tiles.payload[0] + (tiles.has[1] ? sizes.tile_bytes : 0);
    tiles.scales[1] = tiles.scales[0] + (tiles.has[1] ? sizes.tile_scale_bytes : 0);
  }
  return tiles;
}
template <bool kGateUp>
__host__ __device__ constexpr int num_pairs(std::int64_t rows) {
  constexpr int kRows = kGateUp ? quant::kTileRows : kPairRows;
  return static_cast<int>((rows + kRows - 1) / kRows);
}

__device__ inline void copy_piece_async(unsigned shared, const void* global, bool valid,
                                        bool wanted = true) {
  copy_async(shared, static_cast<const bf16*>(global), valid, wanted);
}
__device__ inline uint2 read_8(unsigned shared) {
  uint2 out;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(out.x), "=r"(out.y)
               : "r"(shared)
               : "memory");
  return out;
}
__device__ inline unsigned read_4(unsigned shared) {
  unsigned out;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(out) : "r"(shared) : "memory");
  return out;
}

// What a lane copies of a chunk: a piece of every eight turns of either tile, and (the first lanes)
// a piece of the scales.
struct LaneSources {
  const std::byte *payload[2], *scales;
};
template <typename C>
__device__ inline LaneSources lane_sources(const TilePair& tiles, int chunk, int lane) {
  LaneSources from;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    from.payload[s] = tiles.payload[s] + C::payload_at(chunk) + lane * kPieceBytes;
  }
  from.scales = nullptr;
  const int scales_at = C::scales_at(chunk);
  if constexpr (C::kSpec.is_integer()) {
    const bool second = lane >= C::kScalePieces;
    from.scales = (second ? tiles.scales[1] : tiles.scales[0]) + scales_at +
                  (second ? lane - C::kScalePieces : lane) * kPieceBytes;
  } else if constexpr (C::kSpec.has_scales()) {
    from.scales = (lane == 0 ? tiles.scales[0] : tiles.scales[1]) + scales_at;
  }
  return from;
}

// Asks for a chunk of which `turns_left` turns are there, perhaps more than it has: by all lanes of
// a warp. Zeros stand in for columns, and tiles, that are not there.
template <typename C>
__device__ inline void copy_chunk(unsigned to, const LaneSources& from, int turns_left,
                                  const bool (&has)[2], int lane) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int i = 0; i < C::kTurns / 8; ++i) {
      const int turn = i * 8 + lane / 4;
      copy_piece_async(
          to + s * C::kTileBytes + staged_piece(C::kWords, turn, lane % 4) * kPieceBytes,
          from.payload[s] + i * 32 * kPieceBytes, has[s] && turn < turns_left);
    }
  }
  const unsigned scales_to = to + 2 * C::kTileBytes;
  if constexpr (C::kSpec.is_integer()) {
    constexpr int kGroupTurns = C::kSpec.group / kPerWord<C::kFormat>;
    const bool second = lane >= C::kScalePieces;
    const int group = (second ? lane - C::kScalePieces : lane) / 2;
    copy_piece_async(scales_to + lane * kPieceBytes, from.scales,
                     (second ? has[1] : has[0]) && group * kGroupTurns < turns_left,
                     lane < 2 * C::kScalePieces);
  } else if constexpr (C::kSpec.has_scales()) {
    if (lane < 2) copy_word_async(scales_to + lane * 4, from.scales);
  }
}

// The same of a chunk of which all is there. `lane_to`: staged_piece() of the lane's first, in
// bytes.
template <typename C>
__device__ inline void copy_whole_chunk(unsigned to, const LaneSources& from, int lane_to,
                                        int lane) {
#pragma unroll
  for (int i = 0; i < C::kTurns / 8; ++i) {
    const unsigned eight_to = to + eight_turns_on(C::kWords, lane_to, i);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      copy_16_async(eight_to + s * C::kTileBytes, from.payload[s] + i * 32 * kPieceBytes);
    }
  }
  if constexpr (C::kSpec.is_integer()) {
    if (lane < 2 * C::kScalePieces) {
      copy_16_async(to + 2 * C::kTileBytes + lane * kPieceBytes, from.scales);
    }
  } else if constexpr (C::kSpec.has_scales()) {
    if (lane < 2) copy_word_async(to + 2 * C::kTileBytes + lane * 4, from.scales);
  }
}

// The scales of this lane's four rows in group `group` of the chunk at `at`. Four BF16.
template <typename C>
__device__ inline uint2 read_integer_scales(unsigned at, int group, int g) {
  return read_8(at + 2 * C::kTileBytes + (g / 4 * C::kGroups + group) * C::kGroupScaleBytes +
                g % 4 * 8);
}
template <typename C>
__device__ inline float read_tile_scale(unsigned at, int g) {
  return __uint_as_float(read_4(at + 2 * C::kTileBytes + g / 4 * 4));
}

__device__ inline __nv_bfloat162 as_values(BfPair pair) {
  __nv_bfloat162 values;
  memcpy(&values, &pair, 4);
  return values;
}
__device__ inline BfPair as_pair(__nv_bfloat162 values) {
  BfPair pair;
  memcpy(&pair, &values, 4);
  return pair;
}

// Eight columns of a row as four pairs of neighbours, exactly.
template <QuantFormat kFormat>
__device__ inline void unpack_neighbours(const unsigned (&words)[kWordsPerEight<kFormat>],
                                         BfPair (&out)[4]) {
  if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = fp8_upper_bytes(fp8_neighbours(words[i / 2], i % 2));
  } else if constexpr (kFormat == QuantFormat::kInt4) {
    const __nv_bfloat162 offset = as_values(kInt4Offset * 0x10001u);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bits = masked_xor(int4_neighbours(words[0], i), kInt4Nibbles, kInt4Flip);
      out[i] = as_pair(__hsub2(as_values(bits), offset));
    }
  } else {
    unpack_eight<kFormat>(words, out);
  }
}

// Eight columns of a row as four pairs, off and ordered as expert_places.h says; BF16 as it is.
template <QuantFormat kFormat>
__device__ inline void unpack_biased(const unsigned (&words)[kWordsPerEight<kFormat>],
                                     BfPair (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
      out[i] = fp8_biased(words[i / 2], i % 2);
    } else if constexpr (kFormat == QuantFormat::kInt4) {
      out[i] = int4_biased(words[0], i);
    } else if constexpr (kFormat == QuantFormat::kInt8) {
      const Int8Pair pair = int8_pair(words[i / 2], i % 2);
      out[i] = as_pair(__hsub2(as_values(pair.value), as_values(pair.less)));
    } else {
      static_assert(kFormat == QuantFormat::kBf16);
      out[i] = words[i];
    }
  }
}

// Four rows, whose words stand side by side.
template <typename C, typename Unpack>
__device__ inline void unpack_rows(const uint4 (&fours)[C::kWords], BfPair (&out)[4][4],
                                   Unpack unpack) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    unsigned words[C::kWords];
#pragma unroll
    for (int w = 0; w < C::kWords; ++w) {
      const uint4& four = fours[w];
      words[w] = r == 0 ? four.x : r == 1 ? four.y : r == 2 ? four.z : four.w;
    }
    unpack(words, out[r]);
  }
}

// This lane's share of unit `unit` of the chunk at `at`: four rows of four pairs, without scales.
template <typename C>
__device__ inline void read_weights(unsigned at, int unit, int g, int t, BfPair (&out)[4][4]) {
  uint4 fours[C::kWords];
#pragma unroll
  for (int w = 0; w < C::kWords; ++w) {
    fours[w] =
        read_16(at + g / 4 * C::kTileBytes +
                staged_piece(C::kWords, unit_turn(C::kWords, unit, t, w), g % 4) * kPieceBytes);
  }
  unpack_rows<C>(fours, out, unpack_neighbours<C::kFormat>);
}

// The same for a lane's `places`: as they are, and by unpack_biased().
template <typename C>
__device__ inline void read_fours(unsigned at, int unit, const LanePlaces<C>& places,
                                  uint4 (&fours)[C::kWords]) {
#pragma unroll
  for (int w = 0; w < C::kWords; ++w) {
    fours[w] = read_16(at + places.weights[w] + unit * C::kUnitBytes);
  }
}
template <typename C>
__device__ inline void read_biased_weights(unsigned at, int unit, const LanePlaces<C>& places,
                                           BfPair (&out)[4][4]) {
  uint4 fours[C::kWords];
  read_fours<C>(at, unit, places, fours);
  unpack_rows<C>(fours, out, unpack_biased<C::kFormat>);
}

// Eight columns of an input for biased weights: in their order, and FP8's times 2^60.
template <QuantFormat kFormat>
__device__ inline uint4 biased_inputs(const uint4& x) {
  if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
    const __nv_bfloat162 factor = as_values(kFp8InputFactor * 0x10001u);
    return {as_pair(__hmul2(as_values(x.x), factor)), as_pair(__hmul2(as_values(x.y), factor)),
            as_pair(__hmul2(as_values(x.z), factor)), as_pair(__hmul2(as_values(x.w), factor))};
  } else if constexpr (kFormat == QuantFormat::kInt4) {
    BfPair pairs[4];
    arrange_inputs<kFormat>(x, pairs);
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  } else {
    return x;
  }
}

// sums += product (m, half) of a lane's weights with its eight columns of an input.
template <int kM, int kHalf>
__device__ inline void multiply(float (&sums)[4], const BfPair (&w)[4][4], const uint4& x) {
  const unsigned a[4] = {w[a_row(kM, 0)][a_pair(kHalf, 0)], w[a_row(kM, 1)][a_pair(kHalf, 1)],
                         w[a_row(kM, 2)][a_pair(kHalf, 2)], w[a_row(kM, 3)][a_pair(kHalf, 3)]};
  const unsigned b[4] = {x.x, x.y, x.z, x.w};
  mma(sums, a, b[b_pair(kHalf, 0)], b[b_pair(kHalf, 1)]);
}

// Those of a unit: sums[m] of product m.
__device__ inline void multiply_unit(float (&sums)[2][4], const BfPair (&w)[4][4], const uint4& x) {
  multiply<0, 0>(sums[0], w, x);
  multiply<1, 0>(sums[1], w, x);
  multiply<0, 1>(sums[0], w, x);
  multiply<1, 1>(sums[1], w, x);
}

// Sums of a pair in shared memory, a row of kSumStride floats an input: padded so that lanes that
// store for different inputs use different banks.
inline constexpr int kSumStride = kPairRows + 4;
__device__ inline void store_sums(const float (&sums)[2][4], int num_inputs, float* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int input = sum_input(t, side);
    if (input >= num_inputs) continue;
    *reinterpret_cast<float4*>(out + input * kSumStride + 4 * g) = {
        sums[0][side], sums[0][2 + side], sums[1][side], sums[1][2 + side]};
  }
}

// What f(format, group) returns, as integral constants, for a spec that suits_expert_mma().
template <typename F>
Status for_expert_spec(const QuantSpec& spec, F&& f) {
  using Fp8 = std::integral_constant<QuantFormat, QuantFormat::kF8E4m3B128>;
  using Bf16 = std::integral_constant<QuantFormat, QuantFormat::kBf16>;
  using Int8 = std::integral_constant<QuantFormat, QuantFormat::kInt8>;
  using Int4 = std::integral_constant<QuantFormat, QuantFormat::kInt4>;
  using Group32 = std::integral_constant<int, 32>;
  using Group64 = std::integral_constant<int, 64>;
  using Group128 = std::integral_constant<int, 128>;
  switch (spec.format) {
    case QuantFormat::kF8E4m3B128:
      return f(Fp8{}, Group128{});
    case QuantFormat::kBf16:
      return f(Bf16{}, Group128{});
    case QuantFormat::kInt8:
      return f(Int8{}, Group128{});
    case QuantFormat::kInt4:
      return spec.group == 32   ? f(Int4{}, Group32{})
             : spec.group == 64 ? f(Int4{}, Group64{})
                                : f(Int4{}, Group128{});
    default:
      return make_error(ErrorCode::kUnsupported, "{} experts on tensor cores",
                        quant_format_name(spec.format));
  }
}

}  // namespace stoker::gpu
