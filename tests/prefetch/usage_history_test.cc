#include "prefetch/usage_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stoker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr ExpertGrid kGrid{3, 4};

void use(UsageHistory& history, int layer, std::vector<int> experts) {
  std::vector<ExpertUse> uses(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) uses[i].expert = experts[i];
  history.observe(layer, uses);
}

UsageHistory some_history() {
  UsageHistory history(kGrid);
  for (int step = 0; step < 100; ++step) {
    use(history, 1, step % 2 == 0 ? std::vector{0, 3} : std::vector{3});
    use(history, 2, step % 10 == 0 ? std::vector{1} : std::vector<int>{});
  }
  return history;
}

TEST(UsageHistory, TheMostUsedComeFirst) {
  EXPECT_TRUE(UsageHistory(kGrid).most_used().empty());
  EXPECT_THAT(some_history().most_used(),
              ElementsAre(ExpertId{1, 3}, ExpertId{1, 0}, ExpertId{2, 1}));
}

TEST(UsageHistory, ForgetsSlowly) {
  UsageHistory history(kGrid);
  for (int step = 0; step < 5000; ++step) use(history, 1, {0});
  for (int step = 0; step < 15000; ++step)
    use(history, 1, step % 4 == 0 ? std::vector{1} : std::vector{2});
  EXPECT_THAT(history.most_used(), ElementsAre(ExpertId{1, 2}, ExpertId{1, 1}, ExpertId{1, 0}));
}

TEST(UsageHistory, ATextGivesTheHistoryBack) {
  const std::string text = some_history().to_text("abc123");
  UsageHistory history(kGrid);
  ASSERT_TRUE(history.from_text(text, "abc123").ok());
  EXPECT_EQ(history.most_used(), some_history().most_used());
  EXPECT_EQ(history.to_text("abc123"), text);
  // What happens now weighs little beside it, but it weighs.
  use(history, 2, {2});
  EXPECT_EQ(history.most_used().front(), (ExpertId{1, 3}));
  EXPECT_EQ(history.most_used().back(), (ExpertId{2, 2}));
  for (int step = 0; step < 2000; ++step) use(history, 2, {2});
  EXPECT_EQ(history.most_used().front(), (ExpertId{2, 2}));
}

TEST(UsageHistory, AnEmptyOneIsATextToo) {
  UsageHistory history(kGrid);
  EXPECT_TRUE(history.from_text(UsageHistory(kGrid).to_text("m"), "m").ok());
  EXPECT_TRUE(history.empty());
}

TEST(UsageHistory, WhatDoesNotFitIsAnErrorAndChangesNothing) {
  const std::string text = some_history().to_text("abc123");
  UsageHistory history(kGrid);
  EXPECT_THAT(history.from_text(text, "other").error().message(), HasSubstr("of another model"));
  EXPECT_EQ(history.from_text("", "abc123").error().code(), ErrorCode::kCorrupt);
  EXPECT_EQ(history.from_text("stoker-usage 2 abc123 3 4\n", "abc123").error().code(),
            ErrorCode::kCorrupt);
  EXPECT_EQ(history.from_text("stoker-usage 1 abc123 3 5\n", "abc123").error().code(),
            ErrorCode::kInvalidArgument);
  for (const char* const line :
       {"1 1 2 3", "1 1 2 3 4 5", "3 1 2 3 4", "1 1 2 x 4", "1 1 2 -3 4", "x"}) {
    const Status status = history.from_text(
        std::string("stoker-usage 1 abc123 3 4\n2 0 0 0 1\n") + line + "\n", "abc123");
    ASSERT_FALSE(status.ok()) << line;
    EXPECT_THAT(status.error().message(), HasSubstr("line 3")) << line;
  }
  EXPECT_TRUE(history.empty());
}

}  // namespace
}  // namespace stoker
