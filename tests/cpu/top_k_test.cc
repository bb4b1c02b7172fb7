#include "cpu/top_k.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace stoker::cpu {
namespace {

std::vector<std::int32_t> top(const std::vector<float>& scores, int k) {
  std::vector<std::int32_t> out(k), histogram(kTopKBuckets);
  select_top_k(scores, out, histogram);
  return out;
}

std::vector<std::int32_t> sorted_top(const std::vector<float>& scores, int k) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

TEST(TopK, IsTheHeadOfAStableSort) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const int n : {1, 2, 17, 1000, 5000}) {
    for (const bool coarse : {false, true}) {
      std::vector<float> scores(n);
      for (float& score : scores)
        score = coarse ? static_cast<float>(random() % 5) - 2 : normal(random);
      for (const int k : {0, 1, n / 3, n - 1, n}) EXPECT_EQ(top(scores, k), sorted_top(scores, k));
    }
  }
}

TEST(TopK, TiesGoToTheLowerPosition) {
  EXPECT_EQ(top({1, 2, 2, 2, 0}, 2), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(top({0.0f, -0.0f, 0.0f}, 2), (std::vector<std::int32_t>{0, 1}));
}

}  // namespace
}  // namespace stoker::cpu
