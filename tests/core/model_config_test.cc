#include "core/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>

#include "tests/support/published_configs.h"

namespace stoker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig parsed(const std::string& json) {
  Result<ModelConfig> config = ModelConfig::parse(json);
  CHECK(config.ok(), "{}", config.error().message());
  return std::move(config).value();
}

TEST(ModelConfig, ReadsThePublishedV32) {
  const ModelConfig config = parsed(test::deepseek_v32_config());
  EXPECT_EQ(config.model_type, ModelType::kDeepseekV32);
  EXPECT_EQ(config.vocab_size, 129280);
  EXPECT_EQ(config.hidden_size, 7168);
  EXPECT_EQ(config.q_lora_rank, 1536);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_THAT(config.eos_token_id, ElementsAre(1));
  EXPECT_EQ(config.stored_format, QuantFormat::kF8E4m3B128);
  EXPECT_EQ(config.max_position_embeddings, 163840);
  const AttentionDims dims = config.attention_dims();
  EXPECT_EQ(dims.num_heads, 128);
  EXPECT_EQ(dims.nope_dim, 128);
  EXPECT_EQ(dims.rope_dim, 64);
  EXPECT_EQ(dims.value_dim, 128);
  EXPECT_EQ(dims.latent_dim, 512);
  ASSERT_TRUE(config.indexer_dims().has_value());
  EXPECT_EQ(config.indexer_dims()->num_heads, 64);
  EXPECT_EQ(config.indexer_dims()->head_dim, 128);
  EXPECT_EQ(config.indexer_dims()->top_k, 2048);
}

TEST(ModelConfig, LayerTable) {
  const ModelConfig config = parsed(test::deepseek_v32_config());
  ASSERT_EQ(config.layers().size(), 62u);
  for (int i = 0; i < 62; ++i) {
    const LayerSpec& layer = config.layers()[i];
    EXPECT_EQ(layer.index, i);
    EXPECT_EQ(layer.role, i < 61 ? LayerRole::kMain : LayerRole::kDraft);
    EXPECT_EQ(layer.attention, AttentionKind::kMlaSparse);
    EXPECT_EQ(layer.selection_from, i);
    EXPECT_EQ(layer.ffn, i < 3 ? FfnKind::kDense : FfnKind::kMoe);
    EXPECT_EQ(layer.ffn_width, i < 3 ? 18432 : 2048);
    EXPECT_EQ(layer.shared_width, i < 3 ? 0 : 2048);
    if (i < 3) continue;
    EXPECT_EQ(layer.router.num_experts, 256);
    EXPECT_EQ(layer.router.top_k, 8);
    EXPECT_EQ(layer.router.num_groups, 8);
    EXPECT_EQ(layer.router.top_groups, 4);
    EXPECT_TRUE(layer.router.normalise);
    EXPECT_EQ(layer.router.scaling, 2.5f);
  }
}

TEST(ModelConfig, V3HasNoIndexer) {
  const ModelConfig config = parsed(test::deepseek_v3_config());
  EXPECT_EQ(config.model_type, ModelType::kDeepseekV3);
  EXPECT_FALSE(config.indexer_dims().has_value());
  for (const LayerSpec& layer : config.layers()) {
    EXPECT_EQ(layer.attention, AttentionKind::kMlaDense);
  }
}

TEST(ModelConfig, PublishedRopeFrequencies) {
  constexpr std::array<double, 32> kPublished = {1,
                                                 .749894209,
                                                 .562341325,
                                                 .421696503,
                                                 .316227766,
                                                 .237137371,
                                                 .177827941,
                                                 .133352143,
                                                 .1,
                                                 .0749894209,
                                                 .0562341325,
                                                 .0390069266,
                                                 .0268793601,
                                                 .0183781462,
                                                 .0124479559,
                                                 .00833450895,
                                                 .0055,
                                                 .00356199749,
                                                 .0022493653,
                                                 .00137051364,
                                                 .000790569415,
                                                 .000414990398,
                                                 .000177827941,
                                                 3.33380358e-5,
                                                 2.5e-5,
                                                 1.87473552e-5,
                                                 1.40585331e-5,
                                                 1.05424126e-5,
                                                 7.90569415e-6,
                                                 5.92843426e-6,
                                                 4.44569853e-6,
                                                 3.33380358e-6};
  const std::vector<float> got = parsed(test::deepseek_v32_config()).rope_inv_freq();
  ASSERT_EQ(got.size(), kPublished.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i] / kPublished[i], 1.0, 6e-8 + 5e-9) << i;  // half an F32 ulp, nine digits
  }
}

TEST(ModelConfig, PlainRopeWithoutScaling) {
  const ModelConfig config =
      parsed(test::with_field(test::deepseek_v32_config(), "rope_scaling", "null"));
  const std::vector<float> got = config.rope_inv_freq();
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(got[i], static_cast<float>(std::pow(10000.0, -2.0 * i / 64)));
  }
  EXPECT_DOUBLE_EQ(config.softmax_scale(), 1.0 / std::sqrt(192.0));
}

TEST(ModelConfig, SoftmaxScaleCarriesYarnTemperature) {
  const ModelConfig config = parsed(test::deepseek_v32_config());
  EXPECT_NEAR(config.softmax_scale(), 0.1352337788608801, 1e-16);
  EXPECT_EQ(config.attention_dims().softmax_scale, 0.1352337788608801f);
}

TEST(ModelConfig, DefaultsOfAbsentFields) {
  std::string json = test::deepseek_v32_config();
  for (const char* field :
       {"hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings",
        "attention_bias", "moe_layer_freq", "scoring_func", "topk_method", "norm_topk_prob",
        "num_nextn_predict_layers", "bos_token_id", "eos_token_id", "quantization_config",
        "torch_dtype", "max_position_embeddings"}) {
    json = test::with_field(json, field, "");
  }
  const ModelConfig config = parsed(json);
  EXPECT_EQ(config.layers().size(), 61u);
  EXPECT_EQ(config.stored_format, QuantFormat::kBf16);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.rope_scaling.yarn);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_THAT(config.eos_token_id, ElementsAre(1));
}

TEST(ModelConfig, AcceptedVariants) {
  const std::string base = test::deepseek_v32_config();
  EXPECT_THAT(parsed(test::with_field(base, "eos_token_id", "[1, 7]")).eos_token_id,
              ElementsAre(1, 7));
  EXPECT_TRUE(parsed(test::with_field(base, "n_shared_experts", "null")).layers()[5].shared_width ==
              0);
  // Newer writers: rope_parameters in the place of rope_theta and rope_scaling.
  std::string json = test::with_field(base, "rope_theta", "");
  json = test::with_field(json, "rope_scaling", "");
  json = test::with_field(
      json, "rope_parameters",
      R"({"rope_type":"yarn","rope_theta":10000,"factor":40,"beta_fast":32,"beta_slow":1,"mscale":1.0,
          "mscale_all_dim":1.0,"original_max_position_embeddings":4096})");
  EXPECT_EQ(parsed(json).rope_inv_freq(), parsed(base).rope_inv_freq());
  EXPECT_EQ(parsed(json).softmax_scale(), parsed(base).softmax_scale());
  json = test::with_field(json, "rope_parameters", R"({"rope_type":"default","rope_theta":500})");
  EXPECT_FALSE(parsed(json).rope_scaling.yarn);
  EXPECT_EQ(parsed(json).rope_theta, 500.0);
}

struct Refusal {
  const char* field;
  const char* value;  // empty: removed
  const char* message;
};

class ModelConfigRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(ModelConfigRefuses, AndSaysWhy) {
  const Refusal& c = GetParam();
  const Result<ModelConfig> config =
      ModelConfig::parse(test::with_field(test::deepseek_v32_config(), c.field, c.value));
  ASSERT_FALSE(config.ok());
  EXPECT_THAT(config.error().message(), HasSubstr(c.message));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ModelConfigRefuses,
    ::testing::Values(
        Refusal{"model_type", "", "model_type is missing"},
        Refusal{"model_type", "\"llama\"",
                "model_type \"llama\" is not supported; supported: deepseek_v32"},
        Refusal{"model_type", "7", "model_type must be a string, is 7"},
        Refusal{"hidden_size", "", "hidden_size is missing"},
        Refusal{"hidden_size", "null", "hidden_size is missing"},
        Refusal{"hidden_size", "0", "hidden_size must be a whole number from 1 to 16777216, is 0"},
        Refusal{"hidden_size", "-5", "is -5"}, Refusal{"hidden_size", "7168.5", "is 7168.5"},
        Refusal{"hidden_size", "\"7168\"", "is \"7168\""},
        Refusal{"hidden_size", "18446744073709551615", "is 18446744073709551615"},
        Refusal{"hidden_size", "[[1],[2]]", "is a list of 2"},
        Refusal{"num_hidden_layers", "100000", "num_hidden_layers must be"},
        Refusal{"q_lora_rank", "null", "q_lora_rank is missing"},
        Refusal{"rms_norm_eps", "0", "rms_norm_eps must be greater than 0"},
        Refusal{"rope_theta", "1", "rope_theta must be a number from 1.5 to"},
        Refusal{"norm_topk_prob", "1", "norm_topk_prob must be true or false, is 1"},
        Refusal{"num_experts_per_tok", "257",
                "num_experts_per_tok 257 exceeds n_routed_experts 256"},
        Refusal{"n_group", "7", "n_routed_experts 256 is not divisible by n_group 7"},
        Refusal{"topk_group", "9", "topk_group 9 exceeds n_group 8"},
        Refusal{"num_experts_per_tok", "129",
                "num_experts_per_tok 129 exceeds the 128 experts of topk_group 4 groups of 32"},
        Refusal{"qk_rope_head_dim", "63", "qk_rope_head_dim must be even, is 63"},
        Refusal{"index_head_dim", "32", "index_head_dim 32 is smaller than qk_rope_head_dim 64"},
        Refusal{"index_topk", "", "index_topk is missing"},
        Refusal{"first_k_dense_replace", "62",
                "first_k_dense_replace 62 exceeds num_hidden_layers 61"},
        Refusal{"moe_layer_freq", "2", "moe_layer_freq 2 is not supported"},
        Refusal{"scoring_func", "\"softmax\"", "scoring_func \"softmax\" is not supported"},
        Refusal{"topk_method", "\"greedy\"", "topk_method \"greedy\" is not supported"},
        Refusal{"hidden_act", "\"gelu\"", "hidden_act \"gelu\" is not supported"},
        Refusal{"attention_bias", "true", "attention_bias true is not supported"},
        Refusal{"rope_scaling.type", "\"linear\"", "rope_scaling.type \"linear\" is not supported"},
        Refusal{"rope_scaling.factor", "", "rope_scaling.factor is missing"},
        Refusal{"rope_scaling.factor", "0.5", "rope_scaling.factor must be a number from 1 to"},
        Refusal{"rope_scaling.mscale", "0.707", "rope_scaling.mscale 0.707"},
        Refusal{"rope_scaling", "[]", "rope_scaling must be an object or null"},
        Refusal{"quantization_config.quant_method", "\"gptq\"", "quant_method \"gptq\""},
        Refusal{"quantization_config.weight_block_size", "[64,64]", "weight_block_size [64,64]"},
        Refusal{"quantization_config.weight_block_size", "", "weight_block_size missing"},
        Refusal{"quantization_config.fmt", "\"e5m2\"", "fmt \"e5m2\""},
        Refusal{"quantization_config", "\"fp8\"", "quantization_config must be an object"},
        Refusal{"eos_token_id", "129280", "eos_token_id must be a whole number from 0 to 129279"},
        Refusal{"eos_token_id", "[1,-2]", "eos_token_id must hold whole numbers"},
        Refusal{"eos_token_id", "[]", "eos_token_id is an empty list"},
        Refusal{"n_routed_experts", "65536", "experts"},
        Refusal{"intermediate_size", "16777217", "intermediate_size must be"}));

TEST(ModelConfig, RefusesTextThatIsNoObject) {
  EXPECT_THAT(ModelConfig::parse("").error().message(), HasSubstr("not valid JSON"));
  EXPECT_THAT(ModelConfig::parse("{\"a\": 1").error().message(), HasSubstr("line 1"));
  EXPECT_THAT(ModelConfig::parse("[1]").error().message(), HasSubstr("must be a JSON object"));
  EXPECT_THAT(ModelConfig::parse("{\"a\": \"\xff\"}").error().message(),
              HasSubstr("not valid JSON"));
  EXPECT_FALSE(ModelConfig::parse(std::string(200000, '[')).ok());
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  EXPECT_FALSE(ModelConfig::parse(deep).ok());
  EXPECT_FALSE(ModelConfig::parse("{\"model_type\": " + deep + "}").ok());
}

TEST(ModelConfig, RefusesDimensionsWhoseProductIsHuge) {
  std::string json = test::deepseek_v32_config();
  for (const char* field :
       {"hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size"}) {
    json = test::with_field(json, field, "16777216");
  }
  EXPECT_THAT(ModelConfig::parse(json).error().message(), HasSubstr("parameters"));
}

TEST(ModelConfig, LoadNamesTheFile) {
  const auto missing = ModelConfig::load("/nonexistent/model");
  EXPECT_THAT(missing.error().message(), HasSubstr("/nonexistent/model"));
  EXPECT_EQ(missing.error().code(), ErrorCode::kNotFound);
}

TEST(ModelConfig, LoadsTheReferenceConfigs) {
  const std::filesystem::path root = std::filesystem::path(STOKER_SHARED_DIR) / "reference";
  if (std::string_view(STOKER_SHARED_DIR).empty()) GTEST_SKIP() << "STOKER_SHARED_DIR is empty";
  for (const char* name :
       {"v32-fp8", "v32-odd-bf16", "v32-f32-negative-bias", "v3-fp8", "v32-long"}) {
    const auto config = ModelConfig::load(root / name);
    EXPECT_TRUE(config.ok()) << name << ": " << config.error().message();
  }
}

}  // namespace
}  // namespace stoker
