// Dwords of the tile16 layout (quant/tile16.h) as numbers: exactly quant::decode_element(), all
// elements of a dword at once, in the fewest instructions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "gpu/kernels/common/bits.h"
#include "quant/tile16.h"

namespace stoker::gpu {

template <QuantFormat kFormat>
inline constexpr int kPerWord = 32 / QuantSpec{kFormat}.element_bits();

// Two BF16 in one register, the first in the lower half.
using BfPair = unsigned;

__device__ inline float low_half(BfPair pair) { return bits_to_f32(pair << 16); }
__device__ inline float high_half(BfPair pair) { return bits_to_f32(pair & 0xffff0000u); }

// The upper byte of each half is a code. Exponent bias 7 -> 127 by one exact multiplication, which
// also covers subnormals. NaN codes are none here: weights that hold them are refused.
__device__ inline BfPair fp8_upper_bytes(unsigned word) {
  const unsigned bits = masked_or(word >> 4, 0x07f007f0u, word & 0x80008000u);
  __nv_bfloat162 value;
  memcpy(&value, &bits, 4);
  constexpr unsigned short k2To120 = 0x7b80;
  value =
      __hmul2(value, __nv_bfloat162(__ushort_as_bfloat16(k2To120), __ushort_as_bfloat16(k2To120)));
  BfPair pair;
  memcpy(&pair, &value, 4);
  return pair;
}

template <QuantFormat kFormat>
__device__ inline void unpack(unsigned word, float (&out)[kPerWord<kFormat>]) {
  if constexpr (kFormat == QuantFormat::kInt4) {
    // code + 8, which is the code with its sign bit turned, stands in the mantissa of a power of
    // two whose last place there is 1. Three of the eight nibbles would reach into the exponent and
    // are moved down first.
    const unsigned moved = word >> 12;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int shift = 4 * (c < 5 ? c : c - 3);
      const unsigned exponent = static_cast<unsigned>(127 + 23 - shift) << 23;
      const unsigned bits = masked_xor(c < 5 ? word : moved, 0xfu << shift, exponent | 8u << shift);
      out[c] = __fsub_rn(bits_to_f32(bits), bits_to_f32(exponent) + 8.0f);
    }
  } else if constexpr (kFormat == QuantFormat::kInt8) {
    const unsigned codes = word ^ 0x80808080u;  // code + 128, the mantissa of 2^23
#pragma unroll
    for (unsigned c = 0; c < 4; ++c) {
      const unsigned bits = __byte_perm(codes, 0x4b000000u, 0x7540u | c);
      out[c] = __fsub_rn(bits_to_f32(bits), 0x1p23f + 128.0f);
    }
  } else if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
    const BfPair odd = fp8_upper_bytes(word), even = fp8_upper_bytes(word << 8);
    out[0] = low_half(even), out[1] = low_half(odd);
    out[2] = high_half(even), out[3] = high_half(odd);
  } else if constexpr (kFormat == QuantFormat::kBf16) {
    out[0] = low_half(word), out[1] = high_half(word);
  } else {
#pragma unroll
    for (int c = 0; c < kPerWord<kFormat>; ++c) {
      out[c] = quant::decode_element(kFormat, reinterpret_cast<const std::byte*>(&word), c);
    }
  }
}

// Eight neighbouring columns of a row, in 8 / kPerWord dwords, as BF16 pairs for tensor cores. In
// which order the columns stand is the format's choice; arrange_inputs() gives inputs the same.
template <QuantFormat kFormat>
inline constexpr int kWordsPerEight = 8 / kPerWord<kFormat>;

template <QuantFormat kFormat>
__device__ inline void unpack_eight(const unsigned (&words)[kWordsPerEight<kFormat>],
                                    BfPair (&out)[4]) {
  static_assert(kFormat == QuantFormat::kBf16 || kFormat == QuantFormat::kF8E4m3B128 ||
                kFormat == QuantFormat::kInt8 || kFormat == QuantFormat::kInt4);
  if constexpr (kFormat == QuantFormat::kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = words[i];
  } else if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      out[2 * i] = fp8_upper_bytes(words[i] << 8);
      out[2 * i + 1] = fp8_upper_bytes(words[i]);
    }
  } else if constexpr (kFormat == QuantFormat::kInt8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float values[4];
      unpack<kFormat>(words[i], values);
      out[2 * i] = __byte_perm(f32_to_bits(values[0]), f32_to_bits(values[1]), 0x7632);
      out[2 * i + 1] = __byte_perm(f32_to_bits(values[2]), f32_to_bits(values[3]), 0x7632);
    }
  } else {
    constexpr unsigned short k128 = 0x4300;  // code + 8 in its mantissa
    const __nv_bfloat162 offset(__ushort_as_bfloat16(k128 + 8), __ushort_as_bfloat16(k128 + 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned bits = masked_xor(words[0] >> 4 * i, 0x000f000fu, 0x43084308u);
      __nv_bfloat162 value;
      memcpy(&value, &bits, 4);
      value = __hsub2(value, offset);
      memcpy(&out[i], &value, 4);
    }
  }
}

// Eight neighbouring inputs, ascending, in the order of unpack_eight().
template <QuantFormat kFormat>
__device__ inline void arrange_inputs(const uint4& x, BfPair (&out)[4]) {
  if constexpr (kFormat == QuantFormat::kF8E4m3B128) {  // 0 2, 1 3, 4 6, 5 7
    out[0] = __byte_perm(x.x, x.y, 0x5410), out[1] = __byte_perm(x.x, x.y, 0x7632);
    out[2] = __byte_perm(x.z, x.w, 0x5410), out[3] = __byte_perm(x.z, x.w, 0x7632);
  } else if constexpr (kFormat == QuantFormat::kInt4) {  // 0 4, 1 5, 2 6, 3 7
    out[0] = __byte_perm(x.x, x.z, 0x5410), out[1] = __byte_perm(x.x, x.z, 0x7632);
    out[2] = __byte_perm(x.y, x.w, 0x5410), out[3] = __byte_perm(x.y, x.w, 0x7632);
  } else {
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
  }
}

}  // namespace stoker::gpu
