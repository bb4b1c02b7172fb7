#include "tools/random_context.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/temp_dir.h"
#include "tools/model.h"

namespace stoker::tools {
namespace {

TEST(RandomContext, IsDecodedAfterInEveryFormOfCache) {
  const test::TempDir dir;
  ::setenv("XDG_CACHE_HOME", dir.path().c_str(), 1);
  for (const char* const cache : {"bf16", "f32", "fp8"}) {
    ModelFlags flags;
    flags.model = STOKER_SOURCE_DIR "/models/ember";
    if (!std::filesystem::exists(flags.model + "/config.json")) {
      GTEST_SKIP() << "models/ember is not there";
    }
    flags.threads = 1;
    flags.ctx = 1000;
    flags.kv_cache = cache;
    LoadedModel model = load_model(flags).value();
    const TokenId token = 300;
    const auto logits_after = [&](int context) {
      KvSequence kv(model.runner->kv_pool());
      EXPECT_TRUE(append_random_context(*model.runner, kv, context / 3).ok());  // ends in a page
      EXPECT_TRUE(append_random_context(*model.runner, kv, context - context / 3).ok());
      EXPECT_EQ(kv.length(), context);
      const Segment segment{&kv, 0, 1, Purpose::kDecode, Logits::kLast};
      const ForwardPtr forward = model.runner->run({{&token, 1}, {&segment, 1}}).value();
      const auto row = forward->logits().row(0);
      return std::vector<float>(row.begin(), row.end());
    };
    const std::vector<float> first = logits_after(900);
    for (const float logit : first) ASSERT_TRUE(std::isfinite(logit)) << cache;
    EXPECT_EQ(logits_after(900), first) << "the same every time";
    EXPECT_NE(logits_after(901), first);
    KvSequence kv(model.runner->kv_pool());
    const Status status = append_random_context(*model.runner, kv, 5000);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), ErrorCode::kResource);
  }
}

}  // namespace
}  // namespace stoker::tools
