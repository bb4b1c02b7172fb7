// The small parts that fetching ahead is made of: odds, reuse, transitions, idle windows, the
// switch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "prefetch/idle_windows.h"
#include "prefetch/odds.h"
#include "prefetch/prefetch_switch.h"
#include "prefetch/reuse_odds.h"
#include "prefetch/transition_table.h"
#include "tests/support/block_source.h"

namespace stoker {
namespace {

TEST(Odds, ForgetSlowly) {
  Odds odds(0.5, 8.0);
  EXPECT_EQ(odds.value(), 0.5);
  for (int i = 0; i < 5000; ++i) odds.observe(true);
  EXPECT_GT(odds.value(), 0.99);
  for (int i = 0; i < 5000; ++i) odds.observe(false);
  EXPECT_LT(odds.value(), 0.15);
}

class ReuseOddsTest : public testing::Test {
 protected:
  void turn(std::vector<int> experts) {
    std::vector<ExpertUse> uses(experts.size());
    for (std::size_t i = 0; i < experts.size(); ++i) uses[i].expert = experts[i];
    reuse_.observe(1, uses);
  }
  test::BlockSource source_{2, 1};
  ExpertLayer layer_{1, 64, 2};
  ExpertShapes shapes_{{&layer_, 1}, source_, kHost};
  ReuseOdds reuse_{shapes_};
};

TEST_F(ReuseOddsTest, CountsAgeInTurnsOfTheLayer) {
  turn({3, 4});
  EXPECT_EQ(reuse_.age({1, 3}), 0);
  turn({4});
  turn({5});
  EXPECT_EQ(reuse_.age({1, 3}), 2);
  EXPECT_EQ(reuse_.age({1, 4}), 1);
  EXPECT_EQ(reuse_.age({1, 5}), 0);
  EXPECT_GT(reuse_.age({1, 6}), 1'000'000'000);
}

// Two experts come every turn, and one that comes every eighth.
TEST_F(ReuseOddsTest, LearnsHowLikelyEachAgeIsUsedNext) {
  for (int i = 0; i < 4000; ++i) {
    turn(i % 8 == 0 ? std::vector{1, 2, 3} : std::vector{1, 2});
  }
  EXPECT_GT(reuse_.next_turn({1, 1}), 0.8);
  EXPECT_LT(reuse_.next_turn({1, 40}), 0.01);  // never used
  EXPECT_LT(reuse_.next_turn({1, 3}), reuse_.next_turn({1, 1}));
}

// As experts of a device are given out.
TEST(ExpertShapes, HasItsBlocksInRuns) {
  const test::BlockSource source(2, 1);
  const ExpertLayer layer{1, 64, 2};
  const ExpertShapes shapes({&layer, 1}, source, kHost);
  const ExpertShapes::Layer& shape = shapes.layer(1);
  ASSERT_EQ(shape.runs.size(), 2U);  // of gate and up, and of down
  int next = 0;
  for (const ExpertShapes::Run& run : shape.runs) {
    EXPECT_EQ(run.first_block, next);
    const ExpertPart first = source.part(1, run.first_block, nullptr, kHost);
    for (int i = 0; i < run.num_blocks; ++i, ++next) {
      EXPECT_EQ(shape.blocks[next].offset, shape.blocks[run.first_block].offset + i * run.stride);
      const ExpertPart part = source.part(1, next, nullptr, kHost);
      EXPECT_EQ(part.half, first.half);
      EXPECT_EQ(part.num_rows, first.num_rows);
      EXPECT_EQ(part.row_begin, first.row_begin + i * first.num_rows);
    }
  }
  EXPECT_EQ(next, shape.num_blocks());
}

// Equal blocks at equal distances, whatever else lies between them.
TEST(ExpertParts, GoOnARunWhereTheyFit) {
  constexpr int kRows = 16, kBlocks = 5;
  std::vector<std::byte> memory(kBlocks * 4096 + 64);
  const auto block = [&](int index) {
    ExpertPart part;
    part.row_begin = index * kRows;
    part.num_rows = part.gate.rows = part.up.rows = kRows;
    part.gate.payload = memory.data() + index * 4096;
    part.gate.scales = part.gate.payload + 2048;
    part.up.payload = part.gate.payload + 1024;
    part.up.scales = part.gate.payload + 3072;
    return part;
  };
  std::vector<ExpertPart> blocks;
  for (int i = 0; i < kBlocks; ++i) blocks.push_back(block(i));
  const std::vector<ExpertPart> runs = in_runs(blocks);
  ASSERT_EQ(runs.size(), 1U);
  ASSERT_EQ(runs[0].num_blocks, kBlocks);
  for (int i = 0; i < kBlocks; ++i) {
    const ExpertPart again = runs[0].block_at(i);
    EXPECT_EQ(again.num_blocks, 1);
    EXPECT_EQ(again.row_begin, blocks[i].row_begin);
    EXPECT_EQ(again.gate.scales, blocks[i].gate.scales);
    EXPECT_EQ(again.up.payload, blocks[i].up.payload);
  }
  // What does not fit begins another: a gap, fewer rows, up elsewhere, another use, place or half.
  const std::function<void(ExpertPart&)> changes[] = {
      [](ExpertPart& part) { part.row_begin += kRows; },
      [](ExpertPart& part) { part.num_rows = part.gate.rows = part.up.rows = 3; },
      [](ExpertPart& part) { part.up.payload += 64; },
      [](ExpertPart& part) { part.gate.scales += 64; },
      [](ExpertPart& part) { part.use = 1; },
      [](ExpertPart& part) { part.site = DeviceId{1}; },
      [](ExpertPart& part) { part.gate.device = DeviceId{1}; },
      [](ExpertPart& part) {
        part.half = ExpertHalf::kDown;
        part.down = part.gate;
      },
  };
  for (const auto& change : changes) {
    ExpertPart run = runs[0].block_at(0), next = block(1);
    ASSERT_TRUE(ExpertPart(run).extend(next));
    change(next);
    EXPECT_FALSE(run.extend(next));
    EXPECT_EQ(run.num_blocks, 1);
  }
  ExpertPart run = block(0);
  ASSERT_TRUE(run.extend(block(1)));
  EXPECT_FALSE(run.extend(block(3)));
}

TEST(TransitionTable, KeepsTheMostFrequentSuccessorsAndForgets) {
  TransitionTable table({3, 64});
  const ExpertId from{1, 7};
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    table.passed(from);
    if (i % 2 == 0) table.met(from, 11);
    if (i % 4 == 0) table.met(from, 12);
    if (i % 8 == 0) table.met(from, 20 + static_cast<int>(random() % 40));  // noise
  }
  double of_11 = 0, of_12 = 0;
  for (const auto& successor : table.successors(from)) {
    const double share = static_cast<double>(successor.count) / table.num_passed(from);
    if (successor.expert == 11) of_11 = share;
    if (successor.expert == 12) of_12 = share;
  }
  EXPECT_NEAR(of_11, 0.5, 0.06);
  EXPECT_NEAR(of_12, 0.25, 0.06);
  EXPECT_LT(table.num_passed(from), 300);
  EXPECT_EQ(table.num_passed({2, 7}), 0);
}

TEST(IdleWindows, ExpectWhatTheyHaveSeen) {
  IdleWindows windows(4);
  std::int64_t now = 0;
  for (int step = 0; step < 40; ++step) {
    windows.begin_turn(1, false, now);
    windows.drive_is_idle(now + 100);
    windows.drive_is_idle(now + 300);  // still
    now += 1100;
    windows.begin_turn(2, false, now);  // 1000 after the drive fell idle
    now += 500;                         // busy all the while: no window
  }
  EXPECT_NEAR(static_cast<double>(windows.whole_us(2)), 1000, 5);
  EXPECT_NEAR(static_cast<double>(windows.whole_us(1)), 0, 1);
  windows.begin_turn(1, false, now);
  EXPECT_EQ(windows.left_us(2, now + 50), 0);  // not idle yet
  windows.drive_is_idle(now + 50);
  EXPECT_NEAR(static_cast<double>(windows.left_us(2, now + 250)), 800, 5);
  EXPECT_EQ(windows.left_us(2, now + 5000), 0);
}

TEST(IdleWindows, SweepsHaveWindowsOfTheirOwn) {
  IdleWindows windows(4);
  std::int64_t now = 0;
  for (int step = 0; step < 40; ++step) {
    for (const bool sweep : {false, true}) {
      windows.begin_turn(1, sweep, now);
      windows.drive_is_idle(now);
      now += sweep ? 50'000 : 1000;
      windows.begin_turn(2, sweep, now);
    }
  }
  EXPECT_NEAR(static_cast<double>(windows.whole_us(2)), 50'000, 50);
  windows.begin_turn(1, false, now);
  EXPECT_NEAR(static_cast<double>(windows.whole_us(2)), 1000, 5);
}

// ---- The switch.

struct Life {
  double on_share = 0.0;  // of turns
  double us = 0.0;        // mean
};

// Turns that take `off_us` or `on_us` with scatter as wide as themselves, and drift as they go.
Life live(PrefetchSwitch& prefetch, double off_us, double on_us, int num_turns, unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> scatter;
  double sum = 0.0;
  int num_on = 0;
  for (int turn = 0; turn < num_turns; ++turn) {
    const double drift = 1.0 + 0.5 * turn / num_turns;
    const double us = (prefetch.on() ? on_us : off_us) * scatter(random) * drift;
    num_on += prefetch.on() ? 1 : 0;
    sum += us / drift;
    prefetch.observe(static_cast<std::int64_t>(us));
  }
  return {static_cast<double>(num_on) / num_turns, sum / num_turns};
}

TEST(PrefetchSwitch, StaysOnWhereItPays) {
  for (unsigned seed = 1; seed <= 5; ++seed) {
    PrefetchSwitch prefetch(464);
    const Life life = live(prefetch, 1000.0, 850.0, 400'000, seed);
    EXPECT_GT(life.on_share, 0.9);
    EXPECT_NEAR(prefetch.gain(), 0.15, 0.08);
  }
}

TEST(PrefetchSwitch, GoesOffWhereItCostsAndRetriesRarely) {
  for (unsigned seed = 1; seed <= 5; ++seed) {
    PrefetchSwitch prefetch(464);
    const Life life = live(prefetch, 1000.0, 1100.0, 1'000'000, seed);
    EXPECT_LT(life.on_share, 0.04);
    EXPECT_LT(life.us, 1010.0);  // less than one part in a hundred lost
    EXPECT_LT(prefetch.num_trials(), 12);
    EXPECT_GT(prefetch.num_trials(), 2);
  }
}

TEST(PrefetchSwitch, GoesOffWhereItMakesNoDifference) {
  PrefetchSwitch prefetch(464);
  EXPECT_LT(live(prefetch, 1000.0, 1000.0, 1'000'000, 1).on_share, 0.25);
}

TEST(PrefetchSwitch, NoticesThatTimesHaveChanged) {
  PrefetchSwitch prefetch(464);
  live(prefetch, 1000.0, 1200.0, 300'000, 1);
  EXPECT_GT(live(prefetch, 1000.0, 700.0, 1'500'000, 2).on_share, 0.5);
  EXPECT_LT(live(prefetch, 1000.0, 1300.0, 1'000'000, 3).on_share, 0.15);
}

TEST(PrefetchSwitch, TurnsWithoutTimeDoNoHarm) {
  PrefetchSwitch prefetch(16);
  for (int i = 0; i < 10000; ++i) prefetch.observe(0);
  EXPECT_EQ(prefetch.gain(), 0.0);
}

}  // namespace
}  // namespace stoker
