#include "core/model/tensor_table.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/published_configs.h"

namespace stoker {
namespace {

ModelConfig parsed(const std::string& json) {
  Result<ModelConfig> config = ModelConfig::parse(json);
  CHECK(config.ok(), "{}", config.error().message());
  return std::move(config).value();
}

struct Totals {
  std::int64_t tensors = 0, elements = 0, scales = 0, bytes = 0;
  CategoryBytes by_category{};
};

Totals totals(const ModelConfig& config) {
  Totals sum;
  for (const TensorSpec& tensor : tensor_table(config)) {
    const bool fp8 = tensor.format == QuantFormat::kF8E4m3B128;
    ++sum.tensors;
    sum.elements += tensor.elements();
    if (fp8) {
      ++sum.tensors;
      sum.scales += (tensor.rows + 127) / 128 * ((tensor.cols + 127) / 128);
    }
    sum.bytes += tensor.stored_bytes();
    sum.by_category[static_cast<int>(tensor.category)] += tensor.stored_bytes();
  }
  return sum;
}

// The numbers of the published shard headers.
TEST(TensorTable, PublishedV32ToTheByte) {
  const Totals sum = totals(parsed(test::deepseek_v32_config()));
  EXPECT_EQ(sum.tensors, 92425);
  EXPECT_EQ(sum.elements, 685355329792);
  EXPECT_EQ(sum.scales, 41591584);
  EXPECT_EQ(sum.bytes, 689471107200);
  const auto bytes = [&](TensorCategory c) { return sum.by_category[static_cast<int>(c)]; };
  EXPECT_EQ(bytes(TensorCategory::kEmbedding), 1853358080);
  EXPECT_EQ(bytes(TensorCategory::kAttention), 11416215392);
  EXPECT_EQ(bytes(TensorCategory::kIndexer), 879756640);
  EXPECT_EQ(bytes(TensorCategory::kNorms), 499712 + 3497984 + 28672);
  EXPECT_EQ(bytes(TensorCategory::kDenseFfn), 1189375488);
  EXPECT_EQ(bytes(TensorCategory::kRouter), 212920320);
  EXPECT_EQ(bytes(TensorCategory::kSharedExperts), 2554954752);
  EXPECT_EQ(bytes(TensorCategory::kRoutedExperts), 654068416512);
  EXPECT_EQ(bytes(TensorCategory::kHead), 1853358080);
  EXPECT_EQ(bytes(TensorCategory::kMtp), 15438725568);
}

TEST(TensorTable, MainParameters) {
  const auto parameters = [](const std::string& json) {
    return totals(parsed(test::with_field(json, "num_nextn_predict_layers", "0"))).elements;
  };
  EXPECT_EQ(parameters(test::deepseek_v32_config()), 671877944064);
  EXPECT_EQ(parameters(test::deepseek_v3_config()), 671026419200);
}

TEST(TensorTable, PublishedCosts) {
  const ModelConfig config = parsed(test::deepseek_v32_config());
  EXPECT_EQ(config.expert_bytes(), 44050944);
  EXPECT_EQ(config.expert_bytes(QuantSpec{QuantFormat::kBf16}), 88080384);
  EXPECT_EQ(config.dense_bytes(), 19963965120);
  // All but the embedding, of which one row, and 58 layers of 8 experts.
  EXPECT_EQ(config.active_bytes(), 19963965120 - 1853358080LL + 14336 + 20439638016);
  EXPECT_EQ(config.active_bytes(QuantSpec{QuantFormat::kBf16}) - config.active_bytes(),
            58LL * 8 * (88080384 - 44050944));
}

TEST(TensorTable, PublishedKvBytes) {
  const ModelConfig v32 = parsed(test::deepseek_v32_config());
  EXPECT_EQ(v32.kv_bytes_per_token(KvFormat::kFp8), 48068);
  EXPECT_EQ(v32.kv_bytes_per_token(KvFormat::kBf16), 70272 + 61 * 256);
  EXPECT_EQ(v32.kv_bytes_per_token(KvFormat::kF32), 2 * (70272 + 61 * 256));
  EXPECT_EQ(v32.kv_bytes_per_token(KvFormat::kFp8, LayerRole::kDraft), 48068 / 61 * 62);
  const ModelConfig v3 = parsed(test::deepseek_v3_config());
  EXPECT_EQ(v3.kv_bytes_per_token(KvFormat::kBf16), 70272);
  EXPECT_EQ(v3.kv_bytes_per_token(KvFormat::kFp8), 40016);
}

TEST(TensorTable, NamesAreUniqueAndExpertsSayWhoseTheyAre) {
  const ModelConfig config = parsed(test::deepseek_v32_config());
  std::set<std::string> names;
  for (const TensorSpec& tensor : tensor_table(config)) {
    EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
    if (tensor.expert < 0) continue;
    const ExpertId id{tensor.layer, tensor.expert};
    const bool own = tensor.name == expert_tensor_name(id, "gate_proj") ||
                     tensor.name == expert_tensor_name(id, "up_proj") ||
                     tensor.name == expert_tensor_name(id, "down_proj");
    EXPECT_TRUE(own) << tensor.name;
  }
  for (const char* name :
       {"model.layers.61.eh_proj.weight", "model.layers.61.shared_head.head.weight",
        "model.layers.60.self_attn.indexer.k_norm.bias", "model.layers.3.mlp.gate.weight",
        "model.layers.61.mlp.experts.255.down_proj.weight", "lm_head.weight"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(TensorTable, ScaleNames) {
  EXPECT_EQ(scale_name("a.weight"), "a.weight_scale_inv");
  EXPECT_EQ(weight_of_scale("a.weight_scale_inv"), "a.weight");
  EXPECT_EQ(weight_of_scale("a.weight"), "");
}

}  // namespace
}  // namespace stoker
