#include "quant/tile16.h"

#include <gtest/gtest.h>

#include <vector>

#include "quant/defined_arithmetic.h"
#include "quant/expert_block.h"
#include "tests/support/memory_model.h"
#include "tests/support/published_configs.h"

namespace stoker::quant {
namespace {

struct Shape {
  const char* dtype;
  int rows, cols;
};

class Tile16Test : public testing::TestWithParam<Shape> {
 protected:
  Tile16Test()
      : config_(ModelConfig::parse(test::tiny_config("deepseek_v32", GetParam().dtype)).value()),
        source_(config_),
        weight_(source_.read("some.weight", GetParam().rows, GetParam().cols).value()) {}

  ModelConfig config_;
  test::MemoryWeights source_;
  HostWeight weight_;
};

// A relaid copy of rows [begin, begin + count).
struct Relaid {
  Relaid(const QuantView& src, std::int64_t begin, std::int64_t count) : view(src) {
    const Tile16 tile{count, src.cols, src.spec};
    payload.assign(static_cast<std::size_t>(tile.payload_bytes()), std::byte{0xa5});
    scales.assign(static_cast<std::size_t>(tile.scale_bytes()), std::byte{0xa5});
    relay_tile16(src, begin, count, payload.data(), scales.data());
    view.payload = payload.data();
    view.scales = src.spec.has_scales() ? scales.data() : nullptr;
    view.rows = count;
    view.layout = WeightLayout::kTile16;
  }
  std::vector<std::byte> payload;
  std::vector<std::byte> scales;
  QuantView view;
};

TEST_P(Tile16Test, HoldsTheSameElementsAndScales) {
  const Relaid tiled(weight_.view, 0, weight_.view.rows);
  for (std::int64_t r = 0; r < weight_.view.rows; ++r) {
    for (std::int64_t c = 0; c < weight_.view.cols; ++c) {
      ASSERT_EQ(element_at(tiled.view, r, c), element_at(weight_.view, r, c)) << r << ", " << c;
      ASSERT_EQ(scale_at(tiled.view, r, c), scale_at(weight_.view, r, c)) << r << ", " << c;
    }
  }
}

TEST_P(Tile16Test, PadsWithZeros) {
  const Relaid tiled(weight_.view, 0, weight_.view.rows);
  const Tile16 tile = tile16_of(tiled.view);
  for (std::int64_t r = 0; r < tile.num_tiles() * kTileRows; ++r) {
    for (std::int64_t c = 0; c < tile.padded_cols(); ++c) {
      if (r < tile.rows && c < tile.cols) continue;
      ASSERT_EQ(decode_element(tile.spec.format, tiled.payload.data() + tile.dword_offset(r, c),
                               c % tile.cols_per_turn()),
                0.0f)
          << r << ", " << c;
    }
  }
}

TEST_P(Tile16Test, RowsMayBeRelaidInPieces) {
  if (weight_.view.rows <= kTileRows) GTEST_SKIP() << "one tile";
  const Relaid part(weight_.view, kTileRows, weight_.view.rows - kTileRows);
  for (std::int64_t r = 0; r < part.view.rows; ++r) {
    ASSERT_EQ(element_at(part.view, r, 3), element_at(weight_.view, r + kTileRows, 3));
    ASSERT_EQ(scale_at(part.view, r, 3), scale_at(weight_.view, r + kTileRows, 3));
  }
}

TEST_P(Tile16Test, TheDefinedDotDoesNotDependOnTheLayoutAndIsNearTheTruth) {
  const Relaid tiled(weight_.view, 0, weight_.view.rows);
  test::RandomFloats random(7);
  std::vector<float> x(static_cast<std::size_t>(weight_.view.cols));
  for (float& value : x) value = random.next();
  for (std::int64_t r = 0; r < weight_.view.rows; ++r) {
    double truth = 0.0, size = 0.0;
    for (std::int64_t c = 0; c < weight_.view.cols; ++c) {
      const double term =
          static_cast<double>(element_at(weight_.view, r, c)) * scale_at(weight_.view, r, c) * x[c];
      truth += term;
      size += std::abs(term);
    }
    const float dot = dot_defined(weight_.view, r, x.data());
    EXPECT_EQ(f32_to_bits(dot), f32_to_bits(dot_defined(tiled.view, r, x.data())));
    EXPECT_NEAR(dot, truth, 1e-6 * size);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Tile16Test,
                         testing::Values(Shape{"fp8", 48, 256}, Shape{"fp8", 56, 200},
                                         Shape{"fp8", 260, 131}, Shape{"fp8", 1, 5},
                                         Shape{"bf16", 40, 136}, Shape{"bf16", 17, 7},
                                         Shape{"f32", 33, 65}),
                         [](const auto& info) {
                           return std::string(info.param.dtype) + "_" +
                                  std::to_string(info.param.rows) + "x" +
                                  std::to_string(info.param.cols);
                         });

TEST(ExpertBlocks, CoverTheExpertOnceAndHoldItsRows) {
  const ModelConfig config = ModelConfig::parse(test::tiny_config()).value();
  const test::MemoryWeights source(config);
  // Wide enough for several blocks of either kind, with partial last ones.
  const std::int64_t hidden = 4104, inter = 408;
  const HostWeight gate = source.read("gate.x", inter, hidden).value(),
                   up = source.read("up.x", inter, hidden).value();
  const HostWeight down = source.read("down.x", hidden, inter).value();
  const ExpertBlocks blocks(hidden, inter, gate.view.spec);
  ASSERT_GT(blocks.num_gate_up_blocks(), 1);
  ASSERT_GT(blocks.num_blocks() - blocks.num_gate_up_blocks(), 1);
  std::int64_t offset = 0, gate_rows = 0, down_rows = 0;
  for (int i = 0; i < blocks.num_blocks(); ++i) {
    const ExpertBlocks::Block at = blocks.block(i);
    EXPECT_EQ(at.offset, offset);
    EXPECT_EQ(at.bytes % kBlockAlign, 0);
    EXPECT_LE(at.bytes, kBlockTarget + kBlockAlign + 64 * 1024);
    offset += at.bytes;
    std::vector<std::byte> bytes(static_cast<std::size_t>(at.bytes));
    blocks.write(i, gate.view, up.view, down.view, bytes.data());
    const ExpertPart part = blocks.part(i, bytes.data());
    const bool first = at.half == ExpertHalf::kGateUp;
    std::int64_t& rows = first ? gate_rows : down_rows;
    EXPECT_EQ(part.row_begin, rows);
    for (int r = 0; r < part.num_rows; r += 5) {
      for (std::int64_t c = 0; c < (first ? hidden : inter); c += 37) {
        if (first) {
          ASSERT_EQ(element_at(part.gate, r, c), element_at(gate.view, part.row_begin + r, c));
          ASSERT_EQ(element_at(part.up, r, c), element_at(up.view, part.row_begin + r, c));
          ASSERT_EQ(scale_at(part.up, r, c), scale_at(up.view, part.row_begin + r, c));
        } else {
          ASSERT_EQ(element_at(part.down, r, c), element_at(down.view, part.row_begin + r, c));
          ASSERT_EQ(scale_at(part.down, r, c), scale_at(down.view, part.row_begin + r, c));
        }
      }
    }
    rows += part.num_rows;
  }
  EXPECT_EQ(offset, blocks.expert_bytes());
  EXPECT_EQ(gate_rows, inter);
  EXPECT_EQ(down_rows, hidden);
}

TEST(ExpDefined, IsWithinOneAndAHalfUlpOfTheTruth) {
  double worst = 0.0;
  for (float x = -86.9f; x < 88.0f; x += 0.00137f) {
    const double truth = std::exp(static_cast<double>(x));
    const double ulp = std::ldexp(1.0, std::ilogb(truth) - 23);
    worst = std::max(worst, std::abs(exp_defined(x) - truth) / ulp);
  }
  EXPECT_LT(worst, 1.5);
  EXPECT_EQ(exp_defined(0.0f), 1.0f);
  EXPECT_GT(exp_defined(-1000.0f), 0.0f);
  EXPECT_TRUE(std::isfinite(exp_defined(1000.0f)));
  EXPECT_TRUE(std::isnan(exp_defined(NAN)));
}

TEST(SiluDefined, KeepsItsLimits) {
  EXPECT_EQ(silu_defined(0.0f), 0.0f);
  EXPECT_EQ(silu_defined(100.0f), 100.0f);
  EXPECT_NEAR(silu_defined(-100.0f), 0.0f, 1e-30f);
  EXPECT_NEAR(silu_defined(1.0f), 0.7310585786f, 1e-7f);
}

}  // namespace
}  // namespace stoker::quant
