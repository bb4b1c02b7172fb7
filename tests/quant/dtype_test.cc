#include "core/tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>

namespace stoker {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(bits_to_f32(0x3f808000)).bits, 0x3f80);  // halfway, even below
  EXPECT_EQ(to_bf16(bits_to_f32(0x3f818000)).bits, 0x3f82);  // halfway, even above
  EXPECT_EQ(to_bf16(bits_to_f32(0x3f808001)).bits, 0x3f81);
  EXPECT_EQ(to_bf16(INFINITY).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_f32(to_bf16(bits_to_f32(0x7f800001)))));
}

// IEEE binary16 from its definition.
float by_definition(int code) {
  const int exponent = (code >> 10) & 31, mantissa = code & 1023;
  float magnitude = exponent == 0
                        ? std::ldexp(static_cast<float>(mantissa), -24)
                        : std::ldexp(1.0f + static_cast<float>(mantissa) / 1024.0f, exponent - 15);
  if (exponent == 31) magnitude = mantissa == 0 ? INFINITY : NAN;
  return (code & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(F16, EveryCodeWidensToItsValue) {
  for (int code = 0; code < 65536; ++code) {
    const float value = to_f32(f16{static_cast<std::uint16_t>(code)}),
                expected = by_definition(code);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(f32_to_bits(value), f32_to_bits(expected)) << code;
    }
  }
}

}  // namespace
}  // namespace stoker
