// FP8 E4M3FN: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, 0x7f and 0xff are NaN,
// largest 448.
#pragma once

#include <cstdint>

#include "core/tensor/dtype.h"

namespace stoker::quant {

// The value of a code. Exact. Codes 0x7f and 0xff give NaN; weights that hold them are refused when
// loaded.
STOKER_HD inline float fp8_to_f32(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return bits_to_f32(sign | 0x7fc00000u);
  // Exponent bias 7 -> 127 by one exact multiplication, which also covers subnormals.
  return bits_to_f32(sign | f32_to_bits(bits_to_f32(magnitude << 20) * 0x1p120f));
}

// The value times 2^-120, of a code that is no NaN: its fields in their places, the exponent's bias
// not yet moved. Fewer instructions than fp8_to_f32 where a kernel decodes many.
STOKER_HD inline float fp8_to_f32_unbiased(std::uint8_t code) {
  const auto top = static_cast<std::int32_t>(static_cast<std::uint32_t>(code) << 24);
  return bits_to_f32(static_cast<std::uint32_t>(top >> 4) & 0x87f00000u);
}

// Rounds to nearest even, saturating at 448 (NaN -> 0x7f).
STOKER_HD inline std::uint8_t f32_to_fp8(float value) {
  const std::uint32_t bits = f32_to_bits(value), magnitude = bits & 0x7fffffffu;
  std::uint32_t code;
  if (magnitude > 0x7f800000u) {
    code = 0x7f;
  } else if (magnitude >= 0x43e80000u) {  // 464, halfway between 448 and the unused 480
    code = 0x7e;
  } else if (magnitude >= 0x3c800000u) {  // 2^-6
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - ((127u - 7u) << 3);
  } else {
    // Subnormal: multiples of 2^-9, the last place of 2^14. The addition rounds to nearest even.
    code = f32_to_bits(bits_to_f32(magnitude) + 0x1p14f) - f32_to_bits(0x1p14f);
  }
  return static_cast<std::uint8_t>((bits >> 24 & 0x80u) | code);
}

// True if any of `count` codes is NaN.
bool fp8_has_nan(const std::uint8_t* codes, std::int64_t count);

}  // namespace stoker::quant
