#include "tools/belady.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <numeric>
#include <random>

namespace stoker::tools {
namespace {

using ::testing::ElementsAre;

std::int64_t total(std::span<const std::int32_t> reads) {
  return std::accumulate(reads.begin(), reads.end(), std::int64_t{0});
}

DemandSequence sequence(int num_ids, const std::vector<std::vector<std::int32_t>>& demands) {
  DemandSequence all;
  all.num_ids = num_ids;
  for (const auto& demand : demands) all.add(demand);
  return all;
}

// Every content that a cache can have after each demand, with the fewest reads that lead there.
std::int64_t fewest_by_trying(const DemandSequence& demands, int num_slots, FirstContent first) {
  std::map<std::uint32_t, std::int64_t> best;  // by the set of residents, as bits
  for (std::uint32_t content = 0; content < 1u << demands.num_ids; ++content) {
    if (content == 0 || (first == FirstContent::kBest && std::popcount(content) <= num_slots))
      best[content] = 0;
  }
  const auto step = [&](std::uint32_t wanted) {
    std::map<std::uint32_t, std::int64_t> after;
    for (const auto& [content, reads] : best) {
      const std::int64_t then = reads + std::popcount(wanted & ~content);
      const std::uint32_t full = content | wanted;
      // Everybody but the wanted may go; of more than fit, anybody. More than must makes no
      // difference.
      const std::uint32_t held = std::popcount(wanted) <= num_slots ? wanted : 0;
      for (std::uint32_t kept = full;; kept = (kept - 1) & full) {
        if ((kept & held) == held && std::popcount(kept) <= num_slots) {
          const auto [place, added] = after.try_emplace(kept, then);
          if (!added) place->second = std::min(place->second, then);
        }
        if (kept == 0) break;
      }
    }
    best = std::move(after);
  };
  for (std::int64_t i = 0; i < demands.size(); ++i) {
    std::uint32_t wanted = 0;
    for (const std::int32_t id : demands.demand(i)) wanted |= 1u << id;
    step(wanted);
  }
  std::int64_t fewest = INT64_MAX;
  for (const auto& [content, reads] : best) fewest = std::min(fewest, reads);
  return fewest;
}

DemandSequence random_demands(std::mt19937& random, int num_ids, int most, int length) {
  DemandSequence demands;
  demands.num_ids = num_ids;
  for (int i = 0; i < length; ++i) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_ids));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random);
    ids.resize(1 + random() % static_cast<unsigned>(most));
    std::sort(ids.begin(), ids.end());
    demands.add(ids);
  }
  return demands;
}

TEST(FewestReads, AgreesWithTryingEverything) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const int num_ids = 4 + round % 4;
    const int num_slots = 2 + static_cast<int>(random() % static_cast<unsigned>(num_ids - 2));
    const DemandSequence demands = random_demands(random, num_ids, 3, 4 + round % 6);
    for (const FirstContent first : {FirstContent::kEmpty, FirstContent::kBest}) {
      EXPECT_EQ(total(fewest_reads(demands, num_slots, first)),
                fewest_by_trying(demands, num_slots, first))
          << "round " << round;
    }
  }
}

// The reads of every prefix are the fewest for that prefix, which least_time_us() relies on.
TEST(FewestReads, EveryPrefixIsOptimalToo) {
  std::mt19937 random(2);
  for (int round = 0; round < 40; ++round) {
    const DemandSequence demands = random_demands(random, 6, 2, 9);
    for (const FirstContent first : {FirstContent::kEmpty, FirstContent::kBest}) {
      const std::vector<std::int32_t> reads = fewest_reads(demands, 3, first);
      DemandSequence prefix;
      prefix.num_ids = demands.num_ids;
      for (std::int64_t i = 0; i < demands.size(); ++i) {
        prefix.add(demands.demand(i));
        EXPECT_EQ(total(std::span(reads).first(static_cast<std::size_t>(i) + 1)),
                  fewest_by_trying(prefix, 3, first))
            << "round " << round << ", prefix " << i + 1;
      }
    }
  }
}

TEST(FewestReads, ByHand) {
  // Two slots. 0 1 | 2 evicts 1, which comes later than 0 | 0 is there | 1 is read again.
  const DemandSequence demands = sequence(3, {{0, 1}, {2}, {0}, {1}});
  EXPECT_THAT(fewest_reads(demands, 2, FirstContent::kEmpty), ElementsAre(2, 1, 0, 1));
  EXPECT_THAT(fewest_reads(demands, 2, FirstContent::kBest), ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(fewest_reads(demands, 3, FirstContent::kEmpty), ElementsAre(2, 1, 0, 0));
  // The demanded stay, however far their next use.
  EXPECT_THAT(fewest_reads(sequence(3, {{0, 1}, {0, 2}, {1}, {2}}), 2, FirstContent::kEmpty),
              ElementsAre(2, 1, 1, 0));
  // More than fit: 0 and 1 were there, of the three that were used 2 may stay.
  EXPECT_THAT(fewest_reads(sequence(3, {{0, 1}, {0, 1, 2}, {2}}), 2, FirstContent::kEmpty),
              ElementsAre(2, 1, 0));
}

TEST(DemandsOf, JoinsTheTokensOfAStep) {
  RoutingTrace trace;
  trace.layers = {3, 4};
  trace.num_experts = 10;
  trace.top_k = 2;
  trace.experts = {5, 1, 7, 8, 1, 9, 8, 7, 0, 2, 3, 4};
  trace.step = {0, 0, 4};
  trace.purpose.resize(3, Purpose::kDecode);
  const DemandSequence demands = demands_of(trace, 0, 3);
  ASSERT_EQ(demands.size(), 4);
  EXPECT_EQ(demands.num_ids, 20);
  EXPECT_THAT(demands.demand(0), ElementsAre(1, 5, 9));
  EXPECT_THAT(demands.demand(1), ElementsAre(17, 18));
  EXPECT_THAT(demands.demand(2), ElementsAre(0, 2));
  EXPECT_THAT(demands.demand(3), ElementsAre(13, 14));
  EXPECT_EQ(demands_of(trace, 2, 3).size(), 2);
}

TEST(LeastTime, IsTheLongestOfReadingAndComputing) {
  const std::vector<double> compute = {10, 10, 10};
  using Reads = std::vector<std::int32_t>;
  EXPECT_DOUBLE_EQ(least_time_us(Reads{0, 0, 0}, compute, 5), 30);
  EXPECT_DOUBLE_EQ(least_time_us(Reads{1, 0, 0}, compute, 5), 30);  // hidden in the first layer
  EXPECT_DOUBLE_EQ(least_time_us(Reads{3, 0, 0}, compute, 5), 35);  // 15, then two layers
  EXPECT_DOUBLE_EQ(least_time_us(Reads{3, 0, 9}, compute, 5), 60);  // the drive never rests
  EXPECT_DOUBLE_EQ(least_time_us(Reads{0, 5, 0}, compute, 5), 35);  // read ahead from the start
}

}  // namespace
}  // namespace stoker::tools
