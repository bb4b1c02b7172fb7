#include "quant/kv_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace stoker::quant {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Slow encoders that share no code with the fast one: everything by its definition, in double.

double code_value(int code) {  // of 0x00 .. 0x7e
  const int exponent = code >> 3, mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
}

int nearest_code(double value) {  // ties to the even code
  int best = 0;
  for (int code = 1; code <= 0x7e; ++code) {
    const double now = std::fabs(std::fabs(value) - code_value(code));
    const double before = std::fabs(std::fabs(value) - code_value(best));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return std::signbit(value) ? best | 0x80 : best;
}

double slow_scale(const float* values, int count) {
  double largest = 1e-4f;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(double{values[i]}));
  double scale = std::ldexp(1.0, -40);
  while (scale * 448 < largest && scale < std::ldexp(1.0, 119)) scale *= 2;
  return scale;
}

std::vector<std::uint8_t> slow_row(const KvRow& row, const float* values) {
  std::vector<std::uint8_t> bytes, scales;
  for (int begin = 0; begin < row.quantised; begin += 128) {
    const int count = std::min(128, row.quantised - begin);
    const double scale = slow_scale(values + begin, count);
    for (int i = begin; i < begin + count; ++i) {
      bytes.push_back(static_cast<std::uint8_t>(nearest_code(values[i] / scale)));
    }
    // A power of two as an F32: nothing but its exponent, lowest byte first.
    const auto bits = static_cast<std::uint32_t>(std::ilogb(scale) + 127) << 23;
    for (int i = 0; i < 4; ++i) scales.push_back(static_cast<std::uint8_t>(bits >> 8 * i));
  }
  bytes.insert(bytes.end(), scales.begin(), scales.end());
  for (int i = row.quantised; i < row.quantised + row.kept; ++i) {
    // BF16, rounded to nearest even: 8 bits of significand.
    float rounded = values[i];
    if (std::isfinite(rounded) && rounded != 0.0f) {
      const int place = std::max(std::ilogb(rounded), -126) - 7;
      rounded = static_cast<float>(
          std::ldexp(std::nearbyint(std::ldexp(double{rounded}, -place)), place));
    }
    const std::uint32_t bits = f32_to_bits(rounded) >> 16;
    bytes.push_back(static_cast<std::uint8_t>(bits));
    bytes.push_back(static_cast<std::uint8_t>(bits >> 8));
  }
  return bytes;
}

std::vector<std::uint8_t> fast_row(const KvRow& row, const std::vector<float>& values) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(kv_row_layout(row).bytes) + 1,
                               std::byte{0xa5});
  encode_kv_row(row, values.data(), bytes.data());
  EXPECT_EQ(bytes.back(), std::byte{0xa5});
  std::vector<std::uint8_t> out;
  for (std::size_t i = 0; i + 1 < bytes.size(); ++i) {
    out.push_back(static_cast<std::uint8_t>(bytes[i]));
  }
  return out;
}

std::vector<float> round_trip(const KvRow& row, const std::vector<float>& values) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(kv_row_layout(row).bytes));
  std::vector<float> out(values.size());
  encode_kv_row(row, values.data(), bytes.data());
  decode_kv_row(row, bytes.data(), out.data());
  return out;
}

constexpr KvRow kRows[] = {{512, 64}, {128, 0}, {64, 16}, {200, 10}, {37, 5}, {129, 1}, {1, 0}};

TEST(KvRows, PublishedSizesAndPlaces) {
  const KvRowLayout latent = kv_row_layout({512, 64});
  EXPECT_EQ(latent.scales_at, 512);
  EXPECT_EQ(latent.kept_at, 528);
  EXPECT_EQ(latent.bytes, 656);
  EXPECT_EQ(kv_row_layout({128, 0}).bytes, 132);
  for (const KvRow& row : kRows) {
    EXPECT_EQ(kv_matrix(KvFormat::kFp8, row).row_bytes(), kv_row_layout(row).bytes);
  }
}

TEST(KvRows, BytesAreThoseOfTheSlowEncoder) {
  std::mt19937 random(1);
  for (const KvRow& row : kRows) {
    for (const float size : {1.0f, 1e-3f, 3e-5f, 1e-38f, 40.0f, 448.0f, 1e30f, 1e38f}) {
      for (int turn = 0; turn < 4; ++turn) {
        std::vector<float> values(static_cast<std::size_t>(row.num_values()));
        std::normal_distribution<float> normal(0.0f, size);
        for (float& value : values) value = std::clamp(normal(random), -3e38f, 3e38f);
        if (turn % 2 == 1) {
          for (float& value : values) value = round_to_bf16(value);
        }
        ASSERT_EQ(fast_row(row, values), slow_row(row, values.data()))
            << row.quantised << "+" << row.kept << ", size " << size;
      }
    }
  }
}

TEST(KvRows, LargestValuesAroundEveryScale) {
  for (int exponent = -20; exponent < 127; ++exponent) {
    const float edge = std::ldexp(1.75f, exponent);  // 448 times a power of two
    for (const float largest :
         {edge, std::nextafter(edge, 0.0f), std::nextafter(edge, kInf), edge * 1.01f}) {
      if (!std::isfinite(largest)) continue;
      // BF16 is what is promised; beside it, the last places of F32 may ask for the next scale.
      const std::vector<float> values = {round_to_bf16(largest), -0.3f * largest};
      if (!std::isfinite(values[0])) continue;
      ASSERT_EQ(fast_row({2, 0}, values), slow_row({2, 0}, values.data())) << largest;
    }
  }
}

TEST(KvRows, ARoundTripLosesAtMostHalfAStep) {
  std::mt19937 random(2);
  for (const KvRow& row : kRows) {
    std::vector<float> values(static_cast<std::size_t>(row.num_values()));
    std::normal_distribution<float> normal(0.0f, 2.0f);
    for (float& value : values) value = normal(random);
    const std::vector<float> kept = round_trip(row, values);
    for (int i = 0; i < row.num_values(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const int begin = i / 128 * 128;
      const float bound = i < row.quantised
                              ? std::max(std::fabs(values[at]) / 16.0f,
                                         0x1p-10f * static_cast<float>(slow_scale(
                                                        &values[static_cast<std::size_t>(begin)],
                                                        std::min(128, row.quantised - begin))))
                              : std::fabs(values[at]) / 256.0f;
      ASSERT_LE(std::fabs(kept[at] - values[at]), bound) << i;
      ASSERT_EQ(round_to_bf16(kept[at]), kept[at]) << "not exact in BF16";
    }
    EXPECT_EQ(round_trip(row, kept), kept) << "what was kept is kept";
  }
}

TEST(KvRows, ZerosAndDenormals) {
  const std::vector<float> zeros = {0.0f, -0.0f, 1e-45f, -1e-39f, 3e-38f};
  const std::vector<float> kept = round_trip({5, 0}, zeros);
  for (const float value : kept) EXPECT_EQ(value, 0.0f);
  EXPECT_TRUE(std::signbit(kept[1]));
  // The floor: 2^-22 for a largest value of up to 1e-4.
  EXPECT_EQ(kv_scale(0), 0x1p-22f);
  EXPECT_EQ(kv_scale(f32_to_bits(1e-4f)), 0x1p-22f);
}

TEST(KvRows, HugeValuesStayFinite) {
  const float largest = std::numeric_limits<float>::max();
  const std::vector<float> kept = round_trip({3, 0}, {largest, -largest, 1e36f});
  EXPECT_EQ(kept[0], 448.0f * 0x1p119f);
  EXPECT_EQ(kept[1], -448.0f * 0x1p119f);
  EXPECT_TRUE(std::isfinite(kept[2]));
}

TEST(KvRows, WhatIsNotFinitePoisonsItsGroupAndNoOther) {
  for (const float bad : {kInf, -kInf, std::nanf("")}) {
    std::vector<float> values(300, 1.0f);
    values[130] = bad;
    values[290] = bad;  // kept
    const std::vector<float> kept = round_trip({256, 44}, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i >= 128 && i < 256) {
        ASSERT_TRUE(std::isnan(kept[i])) << i;
      } else if (i == 290) {
        ASSERT_FALSE(std::isfinite(kept[i]));
      } else {
        ASSERT_EQ(kept[i], 1.0f) << i;
      }
    }
    std::vector<float> query(8, 1.0f);
    query[3] = bad;
    round_index_query(query.data(), 8);
    for (const float value : query) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(IndexVectors, TheRotationIsSylvestersMatrixOverTheRootOfItsSize) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int n : {1, 2, 4, 32, 64, 128, 256}) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& value : x) value = round_to_bf16(normal(random));
    std::vector<float> rotated = x;
    rotate_index_vector(rotated.data(), n);
    EXPECT_EQ(hadamard_factor(n), static_cast<float>(1.0 / std::sqrt(double(n))));
    for (int i = 0; i < n; ++i) {
      double sum = 0;
      for (int j = 0; j < n; ++j) {  // the sign of entry [i, j]: parity of i & j
        const int ones = __builtin_popcount(static_cast<unsigned>(i & j));
        sum += (ones % 2 == 0 ? 1.0 : -1.0) * x[static_cast<std::size_t>(j)];
      }
      const double expected = sum / std::sqrt(double(n));
      const float got = rotated[static_cast<std::size_t>(i)];
      EXPECT_EQ(round_to_bf16(got), got);
      EXPECT_NEAR(got, expected, std::fabs(expected) / 200.0 + 1e-5) << n << " at " << i;
    }
  }
}

// spec 3.6: without rounding, rotated queries and keys give the products of unrotated ones; with
// it, a few percent of their size.
TEST(IndexVectors, ProductsSurviveRotationAndRounding) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (int turn = 0; turn < 50; ++turn) {
    std::vector<float> q(128), k(128), kept(128);
    for (std::size_t i = 0; i < 128; ++i) {
      q[i] = round_to_bf16(normal(random));
      k[i] = round_to_bf16(normal(random) * (i == 5 ? 30.0f : 1.0f));  // an outlier
    }
    const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
      return sum;
    };
    const double exact = dot(q, k), sizes = std::sqrt(dot(q, q) * dot(k, k));
    round_index_query(q.data(), 128);
    rotate_index_vector(k.data(), 128);
    std::byte bytes[132];
    encode_kv_row({128, 0}, k.data(), bytes);
    decode_kv_row({128, 0}, bytes, kept.data());
    EXPECT_NEAR(dot(q, kept), exact, 0.02 * sizes);
  }
}

TEST(IndexVectors, AQueryIsRoundedAsAKeyIs) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const int n : {32, 128, 256}) {
    std::vector<float> query(static_cast<std::size_t>(n));
    for (float& value : query) value = normal(random);
    std::vector<float> key = query;
    round_index_query(query.data(), n);
    rotate_index_vector(key.data(), n);
    EXPECT_EQ(query, round_trip({n, 0}, key));
  }
}

}  // namespace
}  // namespace stoker::quant
