#include "storage/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "quant/tile16.h"
#include "storage/checksum.h"
#include "storage/store.h"
#include "storage/store_verify.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/packed_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A model with every part, wide enough that statistics mean something.
std::string wide_config(std::string_view dtype = "fp8") {
  std::string config = test::tiny_config("deepseek_v32", dtype);
  config = test::with_field(config, "hidden_size", "1000");
  config = test::with_field(config, "moe_intermediate_size", "300");
  config = test::with_field(config, "first_k_dense_replace", "2");
  return test::with_field(config, "num_nextn_predict_layers", "1");
}

struct Made {
  test::TempDir temp;
  fs::path dir;
  std::string config_text;
  std::unique_ptr<Store> store;
};

std::unique_ptr<Made> make(const std::string& config, const SynthOptions& options) {
  auto made = std::make_unique<Made>();
  made->dir = made->temp.path() / "slice";
  made->config_text = *slice_config(config, options);
  const Status written = synthesize(made->config_text, options, made->dir);
  CHECK(written.ok(), "{}", written.error().message());
  auto store = Store::open(made->dir, *ModelConfig::load(made->dir));
  CHECK(store.ok(), "{}", store.error().message());
  made->store = std::move(store).value();
  return made;
}

TEST(Synth, SlicesTheConfig) {
  const auto slice =
      slice_config(test::deepseek_v32_config(), {.moe_layers = 6, .vocab_size = 8192});
  ASSERT_TRUE(slice.ok()) << slice.error().message();
  const auto config = ModelConfig::parse(*slice);
  ASSERT_TRUE(config.ok()) << config.error().message();
  EXPECT_EQ(config->num_hidden_layers, 7);
  EXPECT_EQ(config->first_k_dense_replace, 1);
  EXPECT_EQ(config->num_nextn_predict_layers, 0);
  EXPECT_EQ(config->vocab_size, 8192);
  EXPECT_EQ(config->hidden_size, 7168);
  EXPECT_EQ(config->n_routed_experts, 256);
  // Everything else is as it was.
  auto before = nlohmann::json::parse(test::deepseek_v32_config());
  auto after = nlohmann::json::parse(*slice);
  for (const char* field :
       {"num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers", "vocab_size"}) {
    before.erase(field);
    after.erase(field);
  }
  EXPECT_EQ(before, after);
  // Token ids that the vocabulary no longer has.
  const auto ends =
      slice_config(test::with_field(test::deepseek_v32_config(), "eos_token_id", "129000"),
                   {.moe_layers = 1, .vocab_size = 100});
  ASSERT_TRUE(ends.ok()) << ends.error().message();
  EXPECT_THAT(slice_config("{}", {.moe_layers = 1}).error().message(), HasSubstr("model_type"));
}

class SynthFormats : public ::testing::TestWithParam<QuantSpec> {};

// No weight is invalid, none is larger than its format allows, padding is zero, and the variance is
// the one that keeps activations of order one.
TEST_P(SynthFormats, WeightsAreValidAndOfOrderOne) {
  const auto made = make(wide_config(), {.moe_layers = 2, .experts = GetParam(), .num_files = 2});
  const ModelConfig& config = made->store->config();
  ASSERT_EQ(made->store->expert_layers(), (std::vector<int>{1, 2}));
  ASSERT_EQ(made->store->expert_spec(1), GetParam());
  test::AlignedMemory slot(made->store->expert_bytes(1));
  ASSERT_TRUE(made->store->read({2, 7}, slot.data()).ok());
  std::array<double, 2> squares{}, counts{};
  std::int64_t zeros = 0, negative = 0;
  for (int block = 0; block < made->store->num_blocks(2); ++block) {
    const ExpertPart part =
        made->store->part(2, block, slot.data() + made->store->block_offset(2, block), kHost);
    const bool down = part.half == ExpertHalf::kDown;
    for (const QuantView& view : {down ? part.down : part.gate, down ? part.down : part.up}) {
      for (std::int64_t row = 0; row < view.rows; ++row) {
        for (std::int64_t col = 0; col < view.cols; ++col) {
          const float code = quant::element_at(view, row, col);
          const float weight = code * quant::scale_at(view, row, col);
          ASSERT_TRUE(std::isfinite(weight));
          if (view.spec.is_integer()) {
            ASSERT_LE(std::fabs(code), view.spec.max_code());
          }
          squares[down] += static_cast<double>(weight) * weight;
          counts[down] += 1;
          zeros += weight == 0.0f ? 1 : 0;
          negative += weight < 0.0f ? 1 : 0;
        }
      }
      // Padding rows and columns.
      const quant::Tile16 tile = quant::tile16_of(view);
      for (std::int64_t row = 0; row < tile.num_tiles() * quant::kTileRows; ++row) {
        for (std::int64_t col = row < view.rows ? view.cols : 0; col < tile.padded_cols(); ++col) {
          ASSERT_EQ(
              quant::decode_element(view.spec.format, view.payload + tile.dword_offset(row, col),
                                    col % tile.cols_per_turn()),
              0.0f);
        }
      }
    }
  }
  const double total = counts[0] + counts[1];
  EXPECT_LT(static_cast<double>(zeros), 0.13 * total);
  EXPECT_NEAR(static_cast<double>(negative) / (total - static_cast<double>(zeros)), 0.5, 0.02);
  EXPECT_NEAR(std::sqrt(squares[0] / counts[0] * config.hidden_size), 1.0, 0.1);
  EXPECT_NEAR(std::sqrt(squares[1] / counts[1] * config.moe_intermediate_size), 1.6, 0.16);
}

INSTANTIATE_TEST_SUITE_P(Formats, SynthFormats,
                         ::testing::Values(QuantSpec{QuantFormat::kF8E4m3B128, 128},
                                           QuantSpec{QuantFormat::kInt8, 128},
                                           QuantSpec{QuantFormat::kInt4, 32},
                                           QuantSpec{QuantFormat::kInt4, 64},
                                           QuantSpec{QuantFormat::kInt4, 128}),
                         [](const auto& info) { return quant_spec_name(info.param); });

TEST(Synth, NoTwoBlocksAreAlike) {
  const auto made = make(wide_config(), {.moe_layers = 2});
  std::set<std::uint64_t> checksums;
  int blocks = 0;
  test::AlignedMemory slot(made->store->expert_bytes(1));
  for (const int layer : made->store->expert_layers()) {
    for (int expert = 0; expert < 12; ++expert) {
      ASSERT_TRUE(made->store->read({layer, expert}, slot.data()).ok());
      for (int block = 0; block < made->store->num_blocks(layer); ++block, ++blocks) {
        checksums.insert(
            checksum({slot.data() + made->store->block_offset(layer, block),
                      static_cast<std::size_t>(made->store->block_bytes(layer, block))}));
      }
    }
  }
  EXPECT_EQ(std::ssize(checksums), blocks);
}

TEST(Synth, TheSeedDecidesTheBytes) {
  const auto a = make(wide_config(), {.moe_layers = 1});
  const auto b = make(wide_config(), {.moe_layers = 1});
  const auto c = make(wide_config(), {.moe_layers = 1, .seed = 2});
  EXPECT_EQ(test::contents(a->dir), test::contents(b->dir));
  EXPECT_NE(test::contents(a->dir).at("experts-000.safetensors"),
            test::contents(c->dir).at("experts-000.safetensors"));
  const auto report = verify_store(a->dir, {});
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->bad.empty());
}

// Dense tensors in every dtype: finite (reading checks that), not zero, of the intended size.
TEST(Synth, DenseTensorsMakeSense) {
  for (const char* dtype : {"fp8", "bf16", "f16", "f32"}) {
    const auto made = make(wide_config(dtype), {.moe_layers = 1, .experts = {QuantFormat::kInt8}});
    for (const TensorSpec& spec : tensor_table(made->store->config())) {
      if (spec.expert >= 0) continue;
      const auto weight = made->store->read(spec.name, spec.rows, spec.cols);
      ASSERT_TRUE(weight.ok()) << weight.error().message();
      double squares = 0.0;
      for (std::int64_t row = 0; row < spec.rows; ++row) {
        for (std::int64_t col = 0; col < spec.cols; ++col) {
          const double value =
              quant::element_at(weight->view, row, col) * quant::scale_at(weight->view, row, col);
          squares += value * value;
        }
      }
      const double rms = std::sqrt(squares / static_cast<double>(spec.elements()));
      const bool vector = spec.is_vector() || spec.category == TensorCategory::kEmbedding;
      const double size = vector ? 1.0 : 1.0 / std::sqrt(static_cast<double>(spec.cols));
      EXPECT_GT(rms, 0.05 * size) << dtype << " " << spec.name;
      EXPECT_LT(rms, 3.0 * size) << dtype << " " << spec.name;
    }
  }
}

}  // namespace
}  // namespace stoker::storage
