// The shared reference checkpoints open and read whole.
#include <gtest/gtest.h>

#include <filesystem>

#include "storage/checkpoint.h"

namespace stoker::storage {
namespace {

class ReferenceCheckpoint : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::filesystem::path shared(STOKER_SHARED_DIR);
    if (shared.empty()) GTEST_SKIP() << "STOKER_SHARED_DIR is empty";
    dir_ = shared / "reference" / GetParam();
  }
  std::filesystem::path dir_;
};

TEST_P(ReferenceCheckpoint, OpensAndReads) {
  const Result<ModelConfig> config = ModelConfig::load(dir_);
  ASSERT_TRUE(config.ok()) << config.error().message();
  const Result<std::unique_ptr<Checkpoint>> opened = Checkpoint::open(dir_, *config);
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  const Checkpoint& checkpoint = **opened;
  EXPECT_TRUE(checkpoint.notices().empty());

  std::int64_t implied = 0;
  for (const TensorSpec& spec : tensor_table(*config)) {
    implied += spec.stored_bytes();
    const Result<HostWeight> weight = checkpoint.read(spec.name, spec.rows, spec.cols);
    ASSERT_TRUE(weight.ok()) << weight.error().message();
    EXPECT_EQ(weight->view.spec.format, spec.format) << spec.name;
    EXPECT_EQ(weight->view.scales != nullptr, spec.format == QuantFormat::kF8E4m3B128);
  }
  EXPECT_EQ(checkpoint.total_bytes(), implied);
  EXPECT_EQ(checkpoint.dense_bytes(), config->dense_bytes());
  for (const LayerSpec& layer : config->layers()) {
    if (layer.ffn != FfnKind::kMoe) continue;
    std::vector<std::byte> expert(checkpoint.expert_bytes(layer.index));
    for (int e = 0; e < layer.router.num_experts; ++e) {
      const Status status = checkpoint.read(ExpertId{layer.index, e}, expert.data());
      ASSERT_TRUE(status.ok()) << status.error().message();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shared, ReferenceCheckpoint,
                         ::testing::Values("v32-fp8", "v32-odd-bf16", "v32-f32-negative-bias",
                                           "v3-fp8", "v32-long"));

}  // namespace
}  // namespace stoker::storage
