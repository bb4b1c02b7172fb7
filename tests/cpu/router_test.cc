#include "cpu/router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace stoker {
namespace {

using ::testing::ElementsAre;

struct Choice {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

Choice route(const RouterSpec& spec, const std::vector<float>& logits,
             const std::vector<float>& bias, const std::vector<std::int32_t>& forced = {}) {
  Choice out{std::vector<std::int32_t>(spec.top_k), std::vector<float>(spec.top_k)};
  route_row(spec, logits, bias, forced, out.experts, out.weights);
  return out;
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

RouterSpec eight_in_four() {
  return {.num_experts = 8,
          .top_k = 2,
          .num_groups = 4,
          .top_groups = 2,
          .normalise = true,
          .scaling = 2.5f};
}

TEST(Router, KeepsTheBestGroupsOnly) {
  // Expert 6 scores third, but its group's two best are worse than those of groups 0 and 1.
  const std::vector<float> logits = {3, 0, 2, 1.5f, 0, 0, 2.5f, -8};
  const Choice c = route(eight_in_four(), logits, std::vector<float>(8, 0.0f));
  EXPECT_THAT(c.experts, ElementsAre(0, 2));
  const float sum = sigmoid(3) + sigmoid(2);
  EXPECT_NEAR(c.weights[0], sigmoid(3) / sum * 2.5f, 1e-6f);
  EXPECT_NEAR(c.weights[1], sigmoid(2) / sum * 2.5f, 1e-6f);
}

TEST(Router, BiasChoosesButDoesNotWeigh) {
  RouterSpec spec{.num_experts = 4, .top_k = 2, .normalise = false};
  const Choice c = route(spec, {4, 3, 2, 1}, {0, 0, 0, 1});
  EXPECT_THAT(c.experts, ElementsAre(3, 0));
  EXPECT_NEAR(c.weights[0], sigmoid(1), 1e-6f);
}

TEST(Router, DroppedGroupsLoseAgainstNegativeScores) {
  const std::vector<float> bias = {-2, -2, -3, -3, -4, -4, -5, -5};
  RouterSpec spec = eight_in_four();
  spec.top_k = 4;
  EXPECT_THAT(route(spec, std::vector<float>(8, 0.0f), bias).experts, ElementsAre(0, 1, 2, 3));
}

TEST(Router, TiesGoToTheLowerId) {
  RouterSpec spec{.num_experts = 6, .top_k = 3};
  EXPECT_THAT(route(spec, std::vector<float>(6, 1.0f), std::vector<float>(6, 0.0f)).experts,
              ElementsAre(0, 1, 2));
}

TEST(Router, GroupsOfOne) {
  RouterSpec spec{.num_experts = 4, .top_k = 2, .num_groups = 4, .top_groups = 2};
  EXPECT_THAT(route(spec, {0, 5, 1, 4}, std::vector<float>(4, 0.0f)).experts, ElementsAre(1, 3));
}

TEST(Router, ForcedExpertsKeepTheirOrderAndGetComputedWeights) {
  RouterSpec spec{.num_experts = 4, .top_k = 2};
  const Choice c = route(spec, {4, 3, 2, 1}, std::vector<float>(4, 0.0f), {3, 1});
  EXPECT_THAT(c.experts, ElementsAre(3, 1));
  EXPECT_NEAR(c.weights[0], sigmoid(1) / (sigmoid(1) + sigmoid(3)), 1e-6f);
}

TEST(Router, NanStaysInsideTheTable) {
  const Choice c = route(eight_in_four(), std::vector<float>(8, NAN), std::vector<float>(8, 0.0f));
  for (const std::int32_t expert : c.experts) {
    EXPECT_GE(expert, 0);
    EXPECT_LT(expert, 8);
  }
}

}  // namespace
}  // namespace stoker
