// Element types and their scalar conversions, for host and CUDA alike.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/base/hd.h"

namespace stoker {

enum class DType : std::uint8_t { kF32, kF16, kBf16, kF8E4m3, kI32, kU8 };

constexpr int dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBf16:
      return 2;
    case DType::kF8E4m3:
    case DType::kU8:
      return 1;
  }
  return 0;
}

constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBf16:
      return "BF16";
    case DType::kF8E4m3:
      return "F8_E4M3";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

STOKER_HD inline float bits_to_f32(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

STOKER_HD inline std::uint32_t f32_to_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A bfloat16 value: the upper half of an F32.
struct bf16 {
  std::uint16_t bits;
};

STOKER_HD inline float to_f32(bf16 value) {
  return bits_to_f32(static_cast<std::uint32_t>(value.bits) << 16);
}

// Rounds to nearest even; NaN stays NaN (quiet).
STOKER_HD inline bf16 to_bf16(float value) {
  const std::uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  }
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

STOKER_HD inline float round_to_bf16(float value) { return to_f32(to_bf16(value)); }

// An IEEE binary16 value.
struct f16 {
  std::uint16_t bits;
};

STOKER_HD inline float to_f32(f16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_f32(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Exponent bias 15 -> 127 by one exact multiplication, which also covers subnormals.
  const float scaled = bits_to_f32(magnitude << 13) * 0x1p112f;
  return bits_to_f32(sign | f32_to_bits(scaled));
}

}  // namespace stoker
