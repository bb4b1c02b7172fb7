#include "core/runtime/expert_plan.h"

#include <gtest/gtest.h>

#include <vector>

namespace stoker {
namespace {

TEST(ExpertPlan, GroupsRowsByExpertWithDecodeRowsFirst) {
  std::vector<std::int32_t> experts = {5, 1, /*row 1*/ 1, 0, /*row 2*/ 1, 5};
  std::vector<float> weights = {0.5f, 0.1f, 0.2f, 0.3f, 0.4f, 0.6f};
  const RowRange ranges[] = {{0, 1, 0, Purpose::kPrefill}, {1, 2, 1, Purpose::kDecode}};
  ExpertPlan plan(4, 2, 8);
  plan.build({experts, weights}, ranges, 3);
  ASSERT_EQ(plan.uses().size(), 3u);
  EXPECT_EQ(plan.uses()[0].expert, 0);
  EXPECT_EQ(plan.uses()[1].expert, 1);
  EXPECT_EQ(plan.uses()[2].expert, 5);
  const ExpertUse& one = plan.uses()[1];
  EXPECT_EQ(std::vector<int>(one.rows.begin(), one.rows.end()), (std::vector<int>{1, 2, 0}));
  EXPECT_EQ(std::vector<float>(one.weights.begin(), one.weights.end()),
            (std::vector<float>{0.2f, 0.4f, 0.1f}));
  EXPECT_EQ(one.num_decode_rows, 2);
  EXPECT_EQ(one.slot_begin, 1);
  // Row 0 chose 5 before 1, but outputs are summed in ascending id: slots of expert 1, then of
  // expert 5.
  EXPECT_EQ(plan.slots()[0], 3);
  EXPECT_EQ(plan.slot_weights()[0], 0.1f);
  EXPECT_EQ(plan.slots()[1], 5);
  EXPECT_EQ(plan.slot_weights()[1], 0.5f);
  EXPECT_EQ(plan.num_slots(), 6);
}

TEST(ExpertPlan, IsReusedForSmallerSteps) {
  std::vector<std::int32_t> experts = {3, 2, 1, 0};
  std::vector<float> weights = {1, 2, 3, 4};
  ExpertPlan plan(2, 2, 4);
  const RowRange two[] = {{0, 2, 0, Purpose::kDecode}}, one[] = {{0, 1, 0, Purpose::kDecode}};
  plan.build({experts, weights}, two, 2);
  EXPECT_EQ(plan.uses().size(), 4u);
  plan.build({std::span(experts).first(2), std::span(weights).first(2)}, one, 1);
  ASSERT_EQ(plan.uses().size(), 2u);
  EXPECT_EQ(plan.uses()[0].expert, 2);
  EXPECT_EQ(plan.num_slots(), 2);
}

}  // namespace
}  // namespace stoker
