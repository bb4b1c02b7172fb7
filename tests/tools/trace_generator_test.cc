#include "tools/trace_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/support/published_configs.h"
#include "tools/trace_statistics.h"

namespace stoker::tools {
namespace {

using ::testing::HasSubstr;

// DeepSeek-V3.2 cut to six MoE layers.
ModelConfig slice() {
  return ModelConfig::parse(test::with_field(test::deepseek_v32_config(), "num_hidden_layers", "9"))
      .value();
}

RoutingTrace generated(const ModelConfig& config, std::uint64_t seed, int tokens = 1500,
                       int prefill = 0) {
  GeneratedTrace wanted;
  wanted.num_tokens = tokens;
  wanted.num_prefill = prefill;
  wanted.seed = seed;
  return generate_trace(config, wanted).value();
}

// What is published for such routers; docs/simulation.md has the sources.
TEST(TraceGenerator, BehavesAsPublished) {
  for (const std::uint64_t seed : {1, 2, 3, 12345}) {
    SCOPED_TRACE(seed);
    const TraceStatistics statistics = trace_statistics(generated(slice(), seed));
    EXPECT_NEAR(statistics.overlap, 0.33, 0.04);
    for (std::size_t i = 0; i < kCachedFractions.size(); ++i) {
      EXPECT_NEAR(statistics.lru_hit[i], std::pow(kCachedFractions[i], 0.40), 0.05)
          << kCachedFractions[i];
    }
    EXPECT_NEAR(statistics.top_share, 0.043, 0.015);
    EXPECT_GT(statistics.entropy, 0.95);
    const auto& one = statistics.guesses[0];
    const auto& two = statistics.guesses[1];
    EXPECT_NEAR(one.recall[7], 0.75, 0.02);
    EXPECT_NEAR(two.recall[7], one.recall[7] - 0.04, 0.015);
    for (std::size_t rank = 1; rank < one.useful.size(); ++rank) {
      EXPECT_LT(one.useful[rank], one.useful[rank - 1]) << rank;
    }
    EXPECT_GT(one.useful[0], 0.93);
    EXPECT_NEAR(one.useful[9], 0.22, 0.06);
    // What is missed is harder to foresee than what is there.
    EXPECT_LT(one.recall_on_misses, one.recall[7] - 0.03);
    EXPECT_LT(two.recall_on_misses, two.recall[7] - 0.03);
  }
}

// Choices and guesses keep to the groups that a router may take.
TEST(TraceGenerator, KeepsToItsGroups) {
  const RoutingTrace trace = generated(slice(), 7, 200);
  const auto groups = [](std::span<const std::int16_t> ids) {
    std::set<int> seen;
    for (const std::int16_t id : ids) seen.insert(id / 32);
    return seen.size();
  };
  for (std::int64_t token = 0; token < trace.num_tokens(); ++token) {
    for (int place = 0; place < trace.num_layers(); ++place) {
      EXPECT_LE(groups(trace.chosen(token, place)), 4u);
      for (int lead = 1; lead <= kMaxLead; ++lead) {
        const bool some = lead <= place + 1;  // there is a dense layer before the first
        EXPECT_EQ(trace.guessed(lead, token, place)[15] != kNoGuess, some);
        if (some) {
          EXPECT_LE(groups(trace.guessed(lead, token, place)), 4u);
        }
      }
    }
  }
}

TEST(TraceGenerator, ASeedIsATrace) {
  const RoutingTrace once = generated(slice(), 11, 50, 20), again = generated(slice(), 11, 50, 20);
  EXPECT_EQ(once.experts, again.experts);
  EXPECT_EQ(once.guesses, again.guesses);
  EXPECT_NE(once.experts, generated(slice(), 12, 50, 20).experts);
  EXPECT_EQ(once.step[19], 0);
  EXPECT_EQ(once.step[20], 1);
  EXPECT_EQ(once.step[49], 30);
  EXPECT_EQ(once.purpose[19], Purpose::kPrefill);
  EXPECT_EQ(once.purpose[20], Purpose::kDecode);
  // Pinned: a seed means the same on every machine and in every version.
  EXPECT_EQ(std::vector<std::int16_t>(once.experts.begin(), once.experts.begin() + 8),
            (std::vector<std::int16_t>{13, 209, 101, 189, 197, 23, 187, 207}));
}

TEST(TraceGenerator, FitsSmallModelsToo) {
  const ModelConfig tiny = ModelConfig::parse(test::tiny_config()).value();
  const RoutingTrace trace = generated(tiny, 1, 30);
  EXPECT_TRUE(check_trace(trace, tiny).ok());
  EXPECT_EQ(trace.num_ranked, 6);
  const ModelConfig dense =
      ModelConfig::parse(test::with_field(test::tiny_config(), "first_k_dense_replace", "4"))
          .value();
  GeneratedTrace wanted;
  wanted.num_tokens = 1;
  EXPECT_THAT(generate_trace(dense, wanted).error().message(), HasSubstr("no experts"));
}

TEST(TraceStatistics, CountsByHand) {
  // One layer, four experts, two chosen: {0,1} {0,1} {2,3} {0,2}.
  RoutingTrace trace;
  trace.layers = {0};
  trace.num_experts = 4;
  trace.top_k = 2;
  trace.experts = {0, 1, 1, 0, 2, 3, 2, 0};
  trace.step = {0, 1, 2, 3};
  trace.purpose.resize(4, Purpose::kDecode);
  const TraceStatistics statistics = trace_statistics(trace);
  EXPECT_DOUBLE_EQ(statistics.overlap, 3.0 / 6.0);
  // Judged on 2, 3, 2, 0: 2 and 3 come for the first time, 2 comes back after one other expert, 0
  // after two. Two slots (half) hold 2.
  EXPECT_DOUBLE_EQ(statistics.lru_hit[9], 0.25);
  EXPECT_DOUBLE_EQ(statistics.top_share, 1.0);
  const double entropy =
      -(0.375 * std::log(0.375) + 2 * 0.25 * std::log(0.25) + 0.125 * std::log(0.125));
  EXPECT_DOUBLE_EQ(statistics.entropy, entropy / std::log(4.0));
}

}  // namespace
}  // namespace stoker::tools
