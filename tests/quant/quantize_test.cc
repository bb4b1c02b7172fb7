#include "quant/quantize.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "quant/defined_arithmetic.h"
#include "quant/expert_block.h"
#include "tests/support/memory_model.h"
#include "tests/support/published_configs.h"

namespace stoker::quant {
namespace {

// Normal-like values, a tenth of them large.
std::vector<float> weights(int count, std::uint64_t seed, float size = 0.02f) {
  test::RandomFloats random(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    const float sum = random.next() + random.next() + random.next();
    values[i] = size * sum * (i % 10 == 0 ? 2.5f : 1.0f);
  }
  return values;
}

double squared_error(const std::vector<float>& values, double scale, int max_code) {
  double error = 0.0;
  for (const float value : values) {
    const double code =
        std::clamp(std::nearbyint(value / scale), -double{1} * max_code, double{1} * max_code);
    error += (value - code * scale) * (value - code * scale);
  }
  return error;
}

// The least error over the scales that the header promises to consider, and over every BF16 scale.
struct Least {
  double promised = INFINITY, any = INFINITY;
};
Least least_error(const std::vector<float>& values, int max_code) {
  double largest = 0.0;
  for (const float value : values) largest = std::max(largest, std::fabs(double{value}));
  Least least;
  int unclipped = 1;
  while (double{to_f32(bf16{static_cast<std::uint16_t>(unclipped)})} * max_code < largest) {
    ++unclipped;
  }
  for (int bits = 1; bits < 0x7f80; ++bits) {
    const double error =
        squared_error(values, to_f32(bf16{static_cast<std::uint16_t>(bits)}), max_code);
    least.any = std::min(least.any, error);
    if (bits <= unclipped + 16) least.promised = std::min(least.promised, error);
  }
  return least;
}

double error_of_codes(const std::vector<float>& values, bf16 scale,
                      const std::vector<std::int8_t>& codes) {
  double error = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double miss = values[i] - double{to_f32(scale)} * codes[i];
    error += miss * miss;
  }
  return error;
}

struct Case {
  int max_code, count;
};
class QuantizeGroup : public testing::TestWithParam<Case> {};

TEST_P(QuantizeGroup, TakesTheScaleOfLeastSquaredError) {
  const auto [max_code, count] = GetParam();
  double taken = 0.0, any = 0.0;
  for (int seed = 0; seed < 12; ++seed) {
    // Sizes whose scales are ordinary, subnormal, and near the end of the range.
    const float size = seed == 3 ? 1e-38f : seed == 5 ? 1e36f : 0.02f;
    const std::vector<float> values = weights(count, static_cast<std::uint64_t>(seed), size);
    std::vector<std::int8_t> codes(values.size());
    const bf16 scale = quantize_group(values.data(), count, max_code, codes.data());
    const Least least = least_error(values, max_code);
    const double error = error_of_codes(values, scale, codes);
    EXPECT_LE(error, least.promised * (1 + 1e-4)) << "seed " << seed;
    EXPECT_NEAR(error, squared_error(values, to_f32(scale), max_code), 1e-6 * error);
    taken += error / least.promised;
    any += least.any / least.promised;
  }
  // Larger scales than those would gain next to nothing, but for groups of a few values.
  if (count >= 32) {
    EXPECT_LE(taken, any * 1.01);
  }
}

TEST_P(QuantizeGroup, CodesAreTheNearestIntegersTiesToEven) {
  const auto [max_code, count] = GetParam();
  const std::vector<float> values = weights(count, 77);
  std::vector<std::int8_t> codes(values.size());
  const float scale = to_f32(quantize_group(values.data(), count, max_code, codes.data()));
  for (int i = 0; i < count; ++i) {
    const float nearest = std::nearbyint(values[i] / scale);
    EXPECT_EQ(codes[i], std::clamp<float>(nearest, -max_code, max_code));
  }
}

TEST_P(QuantizeGroup, IsExactWhereItCanBe) {
  const auto [max_code, count] = GetParam();
  for (const float scale : {0x1p-10f, 0x1.8p-130f, 0x1p-133f, 0x1.fep100f, -0x1.02p0f}) {
    std::vector<float> values;
    for (int i = 0; i < count; ++i) values.push_back(scale * (max_code - i * 5 % max_code));
    std::vector<std::int8_t> codes(values.size());
    const bf16 got = quantize_group(values.data(), count, max_code, codes.data());
    for (int i = 0; i < count; ++i) EXPECT_EQ(to_f32(got) * codes[i], values[i]) << scale;
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, QuantizeGroup,
                         testing::Values(Case{7, 32}, Case{7, 64}, Case{7, 128}, Case{7, 24},
                                         Case{7, 1}, Case{127, 128}, Case{127, 72}, Case{127, 3}),
                         [](const auto& info) {
                           return "Max" + std::to_string(info.param.max_code) + "Of" +
                                  std::to_string(info.param.count);
                         });

TEST(QuantizeGroupLimits, ZerosSubnormalsAndHugeValues) {
  std::int8_t codes[4] = {9, 9, 9, 9};
  const float zeros[] = {0.0f, -0.0f, 0.0f};
  EXPECT_EQ(quantize_group(zeros, 3, 7, codes).bits, 0);
  EXPECT_EQ(codes[0] | codes[1] | codes[2], 0);
  EXPECT_EQ(codes[3], 9);
  // Below half of what the least scale can say: rounds to zero or one step, and stays finite.
  const float least[] = {0x1p-149f, -0x1p-149f, 0x1p-149f};
  for (const int max_code : {7, 127}) {
    const bf16 scale = quantize_group(least, 3, max_code, codes);
    EXPECT_LE(std::fabs(to_f32(scale) * codes[0]), 0x1p-133f);
  }
  const float huge[] = {FLT_MAX, -FLT_MAX, 1.0f, 0.0f};
  for (const int max_code : {7, 127}) {
    const float scale = to_f32(quantize_group(huge, 4, max_code, codes));
    EXPECT_NEAR(double{scale} * codes[0], FLT_MAX, FLT_MAX / max_code / 2);
    EXPECT_EQ(codes[1], -codes[0]);
    EXPECT_EQ(codes[2], 0);
  }
}

// What every machine must get: a change here changes the bytes of every store.
TEST(QuantizeGroupBits, AreFixed) {
  const std::vector<float> values = weights(128, 1);
  std::vector<std::int8_t> codes(128);
  std::uint64_t hash = 1469598103934665603u;
  for (const int max_code : {7, 127}) {
    for (const int count : {32, 64, 100, 128}) {
      const bf16 scale = quantize_group(values.data(), count, max_code, codes.data());
      for (int i = 0; i < count; ++i) {
        hash = (hash ^ static_cast<std::uint8_t>(codes[i])) * 1099511628211u;
      }
      hash = (hash ^ scale.bits) * 1099511628211u;
    }
  }
  EXPECT_EQ(hash, 9963206392196565800u);
}

struct MatrixCase {
  const char* dtype;
  QuantSpec spec;
  int rows, cols;
};
class QuantizeTile16 : public testing::TestWithParam<MatrixCase> {};

TEST_P(QuantizeTile16, HoldsTheQuantisedRows) {
  const MatrixCase& c = GetParam();
  const ModelConfig config = ModelConfig::parse(test::tiny_config("deepseek_v32", c.dtype)).value();
  const test::MemoryWeights source(config);
  const HostWeight weight = source.read("some.weight", c.rows, c.cols).value();
  const std::int64_t first = c.rows > kTileRows ? kTileRows : 0;
  const Tile16 tile{c.rows - first, c.cols, c.spec};
  std::vector<std::byte> payload(static_cast<std::size_t>(tile.payload_bytes()), std::byte{0xa5});
  std::vector<std::byte> scales(static_cast<std::size_t>(tile.scale_bytes()), std::byte{0xa5});
  quantize_tile16(weight.view, first, tile.rows, c.spec, payload.data(), scales.data());
  QuantView view;
  view.payload = payload.data();
  view.scales = scales.data();
  view.rows = tile.rows;
  view.cols = tile.cols;
  view.spec = c.spec;
  view.layout = WeightLayout::kTile16;

  std::vector<float> row(static_cast<std::size_t>(c.cols));
  std::vector<std::int8_t> codes(kMaxQuantGroup);
  for (std::int64_t r = 0; r < tile.num_tiles() * kTileRows; ++r) {
    for (std::int64_t begin = 0; begin < tile.padded_cols(); begin += c.spec.group) {
      const auto count = static_cast<int>(std::min<std::int64_t>(c.spec.group, c.cols - begin));
      bf16 scale{0};
      if (r < tile.rows) {
        dequantize_row(weight.view, first + r, row.data());
        scale = quantize_group(row.data() + begin, count, c.spec.max_code(), codes.data());
      }
      ASSERT_EQ(scale_at(view, r, begin), to_f32(scale)) << r << ", " << begin;
      const std::int64_t end = std::min(begin + c.spec.group, tile.padded_cols());
      for (std::int64_t col = begin; col < end; ++col) {
        const float expected = r < tile.rows && col < c.cols ? codes[col - begin] : 0;
        ASSERT_EQ(element_at(view, r, col), expected) << r << ", " << col;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Matrices, QuantizeTile16,
                         testing::Values(MatrixCase{"fp8", {QuantFormat::kInt8, 128}, 48, 256},
                                         MatrixCase{"fp8", {QuantFormat::kInt4, 64}, 160, 200},
                                         MatrixCase{"bf16", {QuantFormat::kInt4, 32}, 37, 131},
                                         MatrixCase{"f32", {QuantFormat::kInt4, 128}, 5, 7},
                                         MatrixCase{"f32", {QuantFormat::kInt8, 128}, 17, 130}),
                         [](const auto& info) {
                           return quant_spec_name(info.param.spec) + "_" + info.param.dtype + "_" +
                                  std::to_string(info.param.rows) + "x" +
                                  std::to_string(info.param.cols);
                         });

TEST(DequantizeRow, AppliesTheScalesOfEveryFormat) {
  for (const char* dtype : {"fp8", "bf16", "f32"}) {
    const ModelConfig config = ModelConfig::parse(test::tiny_config("deepseek_v32", dtype)).value();
    const HostWeight weight = test::MemoryWeights(config).read("some.weight", 200, 300).value();
    std::vector<float> row(300);
    for (const std::int64_t r : {0, 127, 128, 199}) {
      dequantize_row(weight.view, r, row.data());
      for (std::int64_t c = 0; c < 300; ++c) {
        ASSERT_EQ(row[c], element_at(weight.view, r, c) * scale_at(weight.view, r, c));
      }
    }
  }
}

TEST(DequantizeRow, SaturatesInsteadOfOverflowing) {
  const std::uint8_t codes[] = {0x7e, 0xfe, 0x38, 0x00};
  const float scale = 0x1p125f;
  QuantView view;
  view.payload = reinterpret_cast<const std::byte*>(codes);
  view.scales = reinterpret_cast<const std::byte*>(&scale);
  view.rows = 1;
  view.cols = 4;
  view.spec.format = QuantFormat::kF8E4m3B128;
  float row[4];
  dequantize_row(view, 0, row);
  EXPECT_EQ(row[0], FLT_MAX);
  EXPECT_EQ(row[1], -FLT_MAX);
  EXPECT_EQ(row[2], scale);
  EXPECT_EQ(row[3], 0.0f);
}

TEST(QuantizedExpertBlocks, HoldTheQuantisedExpertAlignedForVectors) {
  const ModelConfig config = ModelConfig::parse(test::tiny_config()).value();
  const test::MemoryWeights source(config);
  // Several blocks of either kind, partial groups and last tiles.
  const std::int64_t hidden = 4104, inter = 520;
  const HostWeight gate = source.read("gate.x", inter, hidden).value(),
                   up = source.read("up.x", inter, hidden).value(),
                   down = source.read("down.x", hidden, inter).value();
  for (const QuantSpec& spec :
       {QuantSpec{QuantFormat::kInt8, 128}, QuantSpec{QuantFormat::kInt4, 32}}) {
    const ExpertBlocks blocks(hidden, inter, spec);
    ASSERT_GT(blocks.num_gate_up_blocks(), 1);
    ASSERT_GT(blocks.num_blocks() - blocks.num_gate_up_blocks(), 1);
    std::vector<float> row(static_cast<std::size_t>(hidden));
    std::vector<std::int8_t> codes(kMaxQuantGroup);
    for (int i = 0; i < blocks.num_blocks(); ++i) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(blocks.block(i).bytes));
      blocks.write(i, gate.view, up.view, down.view, bytes.data());
      const ExpertPart part = blocks.part(i, bytes.data());
      const auto check = [&](const QuantView& view, const QuantView& from) {
        EXPECT_EQ((view.payload - bytes.data()) % 64, 0);
        EXPECT_EQ((view.scales - bytes.data()) % 64, 0);
        EXPECT_LE(view.scales + tile16_of(view).scale_bytes(), bytes.data() + bytes.size());
        for (std::int64_t r = 0; r < view.rows; r += 7) {
          dequantize_row(from, part.row_begin + r, row.data());
          const std::int64_t col = view.cols / spec.group * spec.group;
          const auto count = static_cast<int>(view.cols - col);
          const bf16 scale = quantize_group(row.data() + col, count, spec.max_code(), codes.data());
          ASSERT_EQ(scale_at(view, r, col), to_f32(scale));
          ASSERT_EQ(element_at(view, r, view.cols - 1), codes[count - 1]);
        }
      };
      if (part.half == ExpertHalf::kGateUp) {
        check(part.gate, gate.view);
        check(part.up, up.view);
      } else {
        check(part.down, down.view);
      }
    }
  }
}

TEST(QuantSpecNames, AreReadBack) {
  for (const char* name :
       {"f32", "f16", "bf16", "fp8_e4m3_b128", "int8_g128", "int4_g32", "int4_g64", "int4_g128"}) {
    ASSERT_TRUE(parse_quant_spec(name).has_value()) << name;
    EXPECT_EQ(quant_spec_name(*parse_quant_spec(name)), name);
  }
  for (const char* name : {"", "int8", "int8_g64", "int4_g16", "fp8"}) {
    EXPECT_FALSE(parse_quant_spec(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace stoker::quant
