#include "tools/model.h"

#include <gtest/gtest.h>

#include "tools/memory_plan.h"

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
    EXPECT_EQ(size.error().code(), ErrorCode::kUsage);
    EXPECT_NE(size.error().message().find("is not a size; write it as 512MiB"), std::string::npos);
  }
  for (const char* nothing : {"0", "0GiB"}) {
    const auto size = parse_size(nothing);
    ASSERT_FALSE(size.ok()) << nothing;
    EXPECT_NE(size.error().message().find("leave the flag out for its default"), std::string::npos);
  }
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

MemoryNeed small_need() {
  MemoryNeed need;
  need.dense_bytes = 10 * kGiB;
  need.kv_bytes = 3 * kGiB / 2;
  need.workspace_bytes = kGiB / 2;
  need.context_tokens = 4096;
  need.slot_bytes = kGiB / 4;
  need.num_experts = 400;
  need.fewest_slots = 8;
  return need;
}

TEST(PlanSlots, TakesWhatTheMachineHasToSpare) {
  const MemoryNeed need = small_need();  // 12 GiB beside the experts, which take 100
  EXPECT_EQ(plan_slots(need, 0, 200 * kGiB).value(), 400);
  EXPECT_EQ(plan_slots(need, 0, 32 * kGiB).value(), (32 - 12 - 2) * 4);
  EXPECT_EQ(plan_slots(need, 0, 0).value(), 400);  // not known how much there is
  EXPECT_EQ(plan_slots(need, 5 * kGiB, 32 * kGiB).value(), 20);
  EXPECT_EQ(plan_slots(need, 5 * kGiB + kGiB / 8, 32 * kGiB).value(), 20);  // a hard limit
  EXPECT_EQ(plan_slots(need, 20 * kGiB, 32 * kGiB).value(), 80);
  MemoryNeed dense = need;
  dense.slot_bytes = 0;
  EXPECT_EQ(plan_slots(dense, 0, 13 * kGiB).value(), 0);
}

TEST(PlanSlots, RefusesWithTheNumbers) {
  const auto refusal = [](const MemoryNeed& need, std::int64_t ram, std::int64_t available) {
    const Result<int> slots = plan_slots(need, ram, available);
    if (slots.ok()) return std::string();
    EXPECT_EQ(slots.error().code(), ErrorCode::kResource);
    return slots.error().message();
  };
  const MemoryNeed need = small_need();
  EXPECT_EQ(refusal(need, 0, 11 * kGiB),
            "this model needs 10.00 GiB for weights beside the routed experts, 1.50 for 4096 "
            "tokens of context and 0.50 for activations, 11.00 GiB of memory are available: free "
            "some or take a smaller model");
  EXPECT_EQ(refusal(need, kGiB, 32 * kGiB),
            "--ram 1073741824 holds 4 experts of 268435456 bytes; a token needs 8 in one layer, so "
            "give it at least 2147483648 bytes (2.00 GiB)");
  EXPECT_NE(refusal(need, 0, 13 * kGiB).find("2.00 GiB for routed experts (a token needs 2.00"),
            std::string::npos);
  EXPECT_NE(refusal(need, 30 * kGiB, 32 * kGiB).find("30.00 GiB for routed experts"),
            std::string::npos);
}

TEST(PlanSlots, NamesAContextThatFits) {
  MemoryNeed need = small_need();
  const std::int64_t token_bytes = need.kv_bytes / need.context_tokens;
  const auto with_context = [&](int num_tokens) {
    MemoryNeed shorter = need;
    shorter.context_tokens = num_tokens;
    shorter.kv_bytes = num_tokens * token_bytes;
    return shorter;
  };
  const std::int64_t available = 27 * kGiB / 2;
  need.context_flag = {"--ctx"};
  EXPECT_NE(plan_slots(need, 0, available)
                .error()
                .message()
                .find("free some, shorten the context (384 tokens would fit, --ctx) or take a"),
            std::string::npos);
  EXPECT_TRUE(plan_slots(with_context(384), 0, available).ok());
  EXPECT_FALSE(plan_slots(with_context(384 + kPageTokens), 0, available).ok());
  // With --ram nothing is spared for others; without a flag none is named.
  need.context_flag = {};
  EXPECT_NE(plan_slots(need, 3 * kGiB, 29 * kGiB / 2)
                .error()
                .message()
                .find("shorten the context (2688 tokens would fit) or give --ram 2684354560 bytes"),
            std::string::npos);
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
  flags.ram = "100000";
  EXPECT_NE(message(flags).find("a token needs 6 in one layer, so give it at least"),
            std::string::npos)
      << message(flags);
  flags.ram = "0";
  EXPECT_EQ(message(flags).find("--ram: \"0\": nothing runs with a size of 0"), 0u)
      << message(flags);
  flags = {};
  flags.kv_cache = "fp8";
  EXPECT_EQ(message(flags), "");
  flags.backend = "reference";
  EXPECT_NE(message(flags).find("leave --kv-cache fp8 out"), std::string::npos);
  flags = {};
  flags.backend = "reference";
  flags.activations = "bf16";
  EXPECT_NE(message(flags).find("--backend reference computes in f32 only"), std::string::npos);
  EXPECT_EQ(message({}), "");
}

}  // namespace
}  // namespace stoker::tools
