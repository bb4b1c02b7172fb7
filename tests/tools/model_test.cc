#include "tools/model.h"

#include <gtest/gtest.h>

namespace stoker::tools {
namespace {

TEST(ParseSize, ReadsBinaryAndDecimalUnits) {
  EXPECT_EQ(parse_size("1000").value(), 1000);
  EXPECT_EQ(parse_size("512MiB").value(), 512LL << 20);
  EXPECT_EQ(parse_size("48GiB").value(), 48LL << 30);
  EXPECT_EQ(parse_size("24GB").value(), 24000000000LL);
  for (const char* bad : {"", "GB", "-1GB", "1.5GB", "12 GB", "3gib", "99999999TiB"}) {
    const auto size = parse_size(bad);
    ASSERT_FALSE(size.ok()) << bad;
    EXPECT_NE(size.error().message().find("is not a size; write it as 512MiB"), std::string::npos);
  }
}

TEST(CheckFits, RefusesWithTheNumbers) {
  MemoryNeed need;
  need.expert_bytes = 100LL << 30;
  need.dense_bytes = 10LL << 30;
  need.kv_bytes = 3LL << 29;
  need.workspace_bytes = 1LL << 29;
  need.context_tokens = 4096;
  EXPECT_TRUE(check_fits(need, 112LL << 30).ok());
  EXPECT_TRUE(check_fits(need, 0).ok());
  const Status refused = check_fits(need, (112LL << 30) - 1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), ErrorCode::kResource);
  EXPECT_EQ(refused.error().message().substr(0, 165),
            "this model needs 112.00 GiB: 100.00 for routed experts, 10.00 for all other weights, "
            "1.50 for 4096 tokens of context and 0.50 for activations; 112.00 GiB of memory a");
}

TEST(LoadModel, SaysWhatIsMissing) {
  ModelFlags flags;
  flags.model = "/no/such/model";
  const auto nowhere = load_model(flags);
  ASSERT_FALSE(nowhere.ok());
  EXPECT_NE(nowhere.error().message().find("/no/such/model is not a directory; give a checkpoint"),
            std::string::npos);
  flags.model = STOKER_SOURCE_DIR "/docs";
  const auto no_config = load_model(flags);
  ASSERT_FALSE(no_config.ok());
  EXPECT_NE(no_config.error().message().find("config.json"), std::string::npos)
      << no_config.error().message();
}

TEST(LoadModel, BudgetsAndFlagsAreChecked) {
  const auto message = [](ModelFlags flags) {
    flags.model = STOKER_SOURCE_DIR "/models/ember";
    const auto model = load_model(flags);
    return model.ok() ? std::string() : model.error().message();
  };
  ModelFlags flags;
  flags.ram = "1MiB";
  EXPECT_NE(message(flags).find("--ram allows 1.0 MiB"), std::string::npos) << message(flags);
  flags = {};
  flags.kv_cache = "fp8";
  EXPECT_NE(message(flags).find("--kv-cache fp8 is not supported yet"), std::string::npos);
  flags = {};
  flags.backend = "reference";
  flags.activations = "bf16";
  EXPECT_NE(message(flags).find("--backend reference computes in f32 only"), std::string::npos);
  EXPECT_EQ(message({}), "");
}

}  // namespace
}  // namespace stoker::tools
