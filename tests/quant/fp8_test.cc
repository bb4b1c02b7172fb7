#include "quant/fp8.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/memory_model.h"

namespace stoker::quant {
namespace {

// E4M3FN from its definition: (-1)^s * 2^(e-7) * (1 + m/8), subnormals 2^-6 * m/8.
float by_definition(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                    : std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Fp8, EveryCodeDecodesToItsValueAndBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = fp8_to_f32(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    EXPECT_EQ(f32_to_bits(value), f32_to_bits(by_definition(code))) << code;
    EXPECT_EQ(f32_to_fp8(value), code);
  }
}

TEST(Fp8, RoundsToTheNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = fp8_to_f32(static_cast<std::uint8_t>(code)),
                high = fp8_to_f32(static_cast<std::uint8_t>(code + 1));
    const float middle = (low + high) / 2.0f;
    EXPECT_EQ(f32_to_fp8(middle), code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(f32_to_fp8(std::nextafter(middle, 0.0f)), code) << code;
    EXPECT_EQ(f32_to_fp8(std::nextafter(middle, 1e9f)), code + 1) << code;
    EXPECT_EQ(f32_to_fp8(-middle), f32_to_fp8(middle) | 0x80) << code;
  }
}

TEST(Fp8, SaturatesAndKeepsNan) {
  EXPECT_EQ(f32_to_fp8(449.0f), 0x7e);
  EXPECT_EQ(f32_to_fp8(1e30f), 0x7e);
  EXPECT_EQ(f32_to_fp8(-INFINITY), 0xfe);
  EXPECT_EQ(f32_to_fp8(NAN) & 0x7f, 0x7f);
}

TEST(Fp8, FindsNan) {
  std::vector<std::uint8_t> codes(1000, 0x7e);
  EXPECT_FALSE(fp8_has_nan(codes.data(), 1000));
  codes[777] = 0xff;
  EXPECT_TRUE(fp8_has_nan(codes.data(), 1000));
  EXPECT_FALSE(fp8_has_nan(codes.data(), 777));
}

}  // namespace
}  // namespace stoker::quant
