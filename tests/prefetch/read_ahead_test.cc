// What ExpertManager reads on speculation, case by case.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "tests/prefetch/manager_rig.h"

namespace stoker {
namespace {

using test::ManagerRig;
using test::RigOptions;

constexpr std::int64_t kExpertBytes = 5 * 4096;

RigOptions options(int num_slots) {
  RigOptions options;
  options.num_slots = num_slots;
  options.reader.depth = 1;
  options.reader.max_per_reap = 1;
  options.manager.prefetch.adaptive = false;
  return options;
}

// Two steps with a long pause before every layer, so that the drive is known to be idle there.
void learn_windows(ManagerRig& rig) {
  for (int step = 0; step < 2; ++step) {
    for (const int layer : {1, 2, 3}) {
      ASSERT_TRUE(rig.run(layer, rig.uses({12, 13, 14, 15})).ok());
      rig.clock().advance(5000);
    }
  }
  rig.settle();
  rig.reader().forget_issued();
}

std::vector<BlockRead> reads_of(ManagerRig& rig, ExpertId id) {
  std::vector<BlockRead> reads;
  for (const BlockRead& read : rig.reader().issued()) {
    if (read.id == id) reads.push_back(read);
  }
  return reads;
}

TEST(ReadAhead, AGuessIsReadAfterTheDemandAndIsAHitWhenItsTurnComes) {
  ManagerRig rig(options(24));
  learn_windows(rig);
  rig.hint_during_next(2, 1, 1, {7});
  ASSERT_TRUE(rig.run(1, rig.uses({1, 13})).ok());
  rig.settle();
  // The demand's five blocks, then the guess's, gate/up first.
  const auto& issued = rig.reader().issued();
  ASSERT_EQ(issued.size(), 10u);
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(issued[i].id, i < 5 ? (ExpertId{1, 1}) : (ExpertId{2, 7}));
    EXPECT_EQ(issued[i].read_class, i < 5 ? ReadClass::kDemand : ReadClass::kNextLayer);
    EXPECT_EQ(issued[i].block, static_cast<int>(i % 5));
  }
  EXPECT_EQ(rig.manager().prefetched_unused_bytes(), kExpertBytes);
  const LayerCounters before = rig.manager().counters(2);
  ASSERT_TRUE(rig.run(2, rig.uses({7})).ok());
  const LayerCounters counted = rig.manager().counters(2) - before;
  EXPECT_EQ(counted.hit, 1);
  EXPECT_EQ(counted.prefetch_used_bytes, kExpertBytes);
  EXPECT_EQ(counted.demand_bytes, 0);
  rig.expect_consistent_counters();
}

TEST(ReadAhead, ASweepReadsAheadOnlyWhatIsAsGoodAsCertain) {
  RigOptions many = options(128);
  many.num_experts = 48;
  ManagerRig rig(many);
  std::set<int> experts;
  for (int expert = 0; expert < 24; ++expert) experts.insert(expert);
  for (int step = 0; step < 2; ++step) {
    for (const int layer : {1, 2, 3}) {
      ASSERT_TRUE(rig.run(layer, rig.uses(experts)).ok());
      rig.clock().advance(50000);
    }
  }
  rig.settle();
  rig.reader().forget_issued();
  std::vector<std::int32_t> named(20, 40);  // by a row each
  named.back() = 41;
  rig.hint_during_next(2, 1, static_cast<int>(named.size()), named);
  ASSERT_TRUE(rig.run(1, rig.uses(experts)).ok());
  rig.settle();
  EXPECT_FALSE(reads_of(rig, {2, 40}).empty());
  EXPECT_TRUE(reads_of(rig, {2, 41}).empty());
}

TEST(ReadAhead, TheLikelierGuessIsReadWholeBeforeTheNext) {
  ManagerRig rig(options(24));
  learn_windows(rig);
  rig.hint_during_next(2, 1, 1, {7, 8});
  ASSERT_TRUE(rig.run(1, rig.uses({13})).ok());
  rig.settle();
  ASSERT_EQ(reads_of(rig, {2, 7}).size(), 5u);
  ASSERT_EQ(reads_of(rig, {2, 8}).size(), 5u);
  const auto& issued = rig.reader().issued();
  const auto at = [&](int expert, int block) {
    return std::find_if(issued.begin(), issued.end(), [&](const BlockRead& read) {
      return read.id == ExpertId{2, expert} && read.block == block;
    });
  };
  EXPECT_LT(at(7, 4), at(8, 0));
}

TEST(ReadAhead, WhatIsOnItsWayWhenItsTurnComesIsLateAndPromoted) {
  ManagerRig rig(options(24));
  learn_windows(rig);
  rig.hint_during_next(2, 1, 1, {6, 7, 8});
  ASSERT_TRUE(rig.run(1, rig.uses({13})).ok());
  rig.reader().hold(true);  // one block at most is out
  ASSERT_LT(reads_of(rig, {2, 7}).size(), 5u);
  const LayerCounters before = rig.manager().counters(2);
  const auto uses = rig.uses({7});
  {
    const ExpertSetPtr set = rig.manager().demand(2, uses).value();
    EXPECT_EQ((rig.manager().counters(2) - before).late, 1);
    EXPECT_EQ((rig.manager().counters(2) - before).miss, 0);
    rig.reader().hold(false);
    std::vector<ExpertPart> parts(10);
    for (int i = 0; i < 100 && !set->exhausted(); ++i) {
      const std::size_t ready = set->take_ready(parts);
      for (std::size_t p = 0; p < ready; ++p) EXPECT_TRUE(parts[p].passes_guard());
    }
    EXPECT_TRUE(set->exhausted());
  }
  const auto reads = reads_of(rig, {2, 7});
  ASSERT_EQ(reads.size(), 5u);
  EXPECT_EQ(reads.back().read_class, ReadClass::kDemand);
  // Nobody asked for 8: what had not been issued was taken back.
  EXPECT_LT(reads_of(rig, {2, 8}).size(), 5u);
  EXPECT_FALSE(rig.manager().cache().slot_of({2, 8}));
}

TEST(ReadAhead, AGuessWhoseTurnPassesGoesFirst) {
  ManagerRig rig(options(13));  // 12 residents and one to spare
  learn_windows(rig);
  ASSERT_EQ(rig.manager().cache().num_free(), 1);
  rig.hint_during_next(2, 1, 1, {7});
  ASSERT_TRUE(rig.run(1, rig.uses({13})).ok());
  rig.settle();
  ASSERT_TRUE(rig.manager().cache().resident({2, 7}));
  ASSERT_TRUE(rig.run(2, rig.uses({14, 15})).ok());  // not 7
  ASSERT_TRUE(rig.run(3, rig.uses({1})).ok());
  EXPECT_FALSE(rig.manager().cache().slot_of({2, 7}));
  EXPECT_EQ(rig.total().prefetch_wasted_bytes, kExpertBytes);
  for (const int layer : {1, 2, 3}) {
    for (const int expert : {12, 13, 14, 15})
      EXPECT_TRUE(rig.manager().cache().resident({layer, expert})) << layer << "." << expert;
  }
  rig.expect_consistent_counters();
}

TEST(ReadAhead, AGuessThatIsMostlyThereIsReadToItsEnd) {
  ManagerRig rig(options(24));
  learn_windows(rig);
  rig.hint_during_next(2, 1, 1, {7});
  ASSERT_TRUE(rig.run(1, rig.uses({13})).ok());
  while (reads_of(rig, {2, 7}).size() < 5) rig.manager().pump();
  rig.reader().hold(true);  // four of five blocks have landed
  {
    const auto uses = rig.uses({14});
    const ExpertSetPtr set = rig.manager().demand(2, uses).value();
  }
  rig.reader().hold(false);
  rig.settle();
  EXPECT_TRUE(rig.manager().cache().resident({2, 7}));
  EXPECT_EQ(rig.manager().cache().standing(rig.manager().cache().slot_of({2, 7}).value()),
            Standing::kCold);
}

TEST(ReadAhead, NobodyUsedInTheLastTurnMakesRoomForAGuess) {
  ManagerRig rig(options(12));  // full of what every step uses
  learn_windows(rig);
  ASSERT_EQ(rig.manager().cache().num_free(), 0);
  rig.hint_during_next(2, 1, 1, {7});
  ASSERT_TRUE(rig.run(1, rig.uses({12, 13, 14, 15})).ok());
  rig.settle();
  EXPECT_TRUE(rig.reader().issued().empty());
}

TEST(ReadAhead, WhoLetATurnPassMakesRoomForALikelyGuess) {
  ManagerRig rig(options(12));
  learn_windows(rig);
  ASSERT_TRUE(rig.run(1, rig.uses({12, 13, 14})).ok());  // 15 is left out
  rig.clock().advance(1);
  rig.hint_during_next(3, 1, 1, {7});
  ASSERT_TRUE(rig.run(2, rig.uses({12, 13, 14, 15})).ok());
  rig.settle();
  EXPECT_TRUE(rig.manager().cache().resident({3, 7}));
  EXPECT_FALSE(rig.manager().cache().slot_of({1, 15}));
}

TEST(ReadAhead, WithoutIdleTimeNothingIsReadAhead) {
  ManagerRig rig(options(24));
  for (int step = 0; step < 3; ++step) {
    for (const int layer : {1, 2, 3}) {
      // The clock stands still: every demand follows at once.
      rig.hint_during_next(layer % 3 + 1, 1, 1, {7});
      const auto uses = rig.uses({12, 13});
      const ExpertSetPtr set = rig.manager().demand(layer, uses).value();
      std::vector<ExpertPart> parts(10);
      while (!set->exhausted()) {
        const std::size_t ready = set->take_ready(parts);
        for (std::size_t p = 0; p < ready; ++p) EXPECT_TRUE(parts[p].passes_guard());
      }
    }
  }
  for (const BlockRead& read : rig.reader().issued())
    EXPECT_EQ(read.read_class, ReadClass::kDemand);
}

TEST(ReadAhead, ADemandThatNeedsTheSlotsTakesThemBack) {
  RigOptions few = options(10);
  few.num_experts = 16;
  ManagerRig rig(few);
  for (int step = 0; step < 3; ++step) {
    for (const int layer : {1, 2, 3}) {
      ASSERT_TRUE(rig.run(layer, rig.uses({layer})).ok());
      rig.clock().advance(5000);
    }
  }
  rig.settle();
  rig.reader().hold(true);
  rig.hint_during_next(2, 1, 1, {7, 8, 9});
  {
    const auto uses = rig.uses({1});
    const ExpertSetPtr set = rig.manager().demand(1, uses).value();
    rig.manager().hint({1, 2, 1, 1, 3, std::vector<std::int32_t>{7, 8, 9}});
    rig.manager().pump();
    rig.note_demanded(1);
  }
  EXPECT_EQ(rig.manager().cache().num_in_flight(), 3);
  // Ten at once, of a layer that nothing was guessed of.
  std::set<int> many;
  for (int expert = 2; expert < 12; ++expert) many.insert(expert);
  rig.reader().hold(false);
  ASSERT_TRUE(rig.run(3, rig.uses(many)).ok());
  rig.settle();
  rig.expect_consistent_counters();
}

TEST(ReadAhead, OffReadsNothingButWhatIsDemanded) {
  RigOptions off = options(24);
  off.manager.prefetch.enabled = false;
  ManagerRig rig(off);
  EXPECT_EQ(rig.manager().num_ranked_guesses(), 0);
  rig.manager().warm_up({{1, 1}, {1, 2}});
  learn_windows(rig);
  rig.hint_during_next(2, 1, 1, {7});
  ASSERT_TRUE(rig.run(1, rig.uses({1})).ok());
  rig.settle();
  EXPECT_EQ(rig.reader().issued().size(), 5u);
  EXPECT_FALSE(rig.manager().warming_up());
}

// ---- Warm-up.

TEST(WarmUp, FillsFreeSlotsInOrderAndEvictsNobody) {
  ManagerRig rig(options(10));
  ASSERT_TRUE(rig.run(1, rig.uses({4, 5})).ok());
  rig.reader().forget_issued();
  std::vector<ExpertId> wanted;
  for (int expert = 0; expert < 16; ++expert) wanted.push_back({1, expert});
  rig.manager().warm_up(wanted);
  EXPECT_TRUE(rig.manager().warming_up());
  while (rig.manager().warming_up()) rig.manager().pump();
  EXPECT_EQ(rig.manager().cache().num_evictable(), 10);
  for (int expert = 0; expert < 10; ++expert)
    EXPECT_TRUE(rig.manager().cache().resident({1, expert})) << expert;
  EXPECT_EQ(rig.reader().issued().size(), 8u * 5u);
  for (const BlockRead& read : rig.reader().issued()) EXPECT_EQ(read.read_class, ReadClass::kWarm);
  // What is used of it counts as fetched ahead and used.
  ASSERT_TRUE(rig.run(1, rig.uses({0, 4})).ok());
  EXPECT_EQ(rig.manager().counters(1).hit, 2);
  EXPECT_EQ(rig.manager().counters(1).prefetch_used_bytes, kExpertBytes);
  rig.expect_consistent_counters();
}

TEST(WarmUp, DemandGoesFirst) {
  ManagerRig rig(options(20));
  rig.manager().warm_up({{2, 0}, {2, 1}, {2, 2}, {2, 3}});
  ASSERT_TRUE(rig.run(1, rig.uses({4, 5})).ok());
  // What was issued before the demand came is done; the rest waits until the demand is served.
  const auto& issued = rig.reader().issued();
  const auto last_demand = std::find_if(issued.rbegin(), issued.rend(), [](const BlockRead& read) {
    return read.read_class == ReadClass::kDemand;
  });
  const auto warm_before = std::count_if(last_demand, issued.rend(), [](const BlockRead& read) {
    return read.read_class == ReadClass::kWarm;
  });
  EXPECT_LE(warm_before, 2);
  while (rig.manager().warming_up()) rig.manager().pump();
  for (int expert = 0; expert < 4; ++expert)
    EXPECT_TRUE(rig.manager().cache().resident({2, expert}));
}

TEST(WarmUp, ADemandForWhatIsBeingWarmedIsLate) {
  ManagerRig rig(options(20));
  rig.reader().hold(true);
  rig.manager().warm_up({{1, 0}, {1, 1}});
  rig.reader().hold(false);
  ASSERT_TRUE(rig.run(1, rig.uses({0})).ok());
  EXPECT_EQ(rig.manager().counters(1).late, 1);
  rig.settle();
  rig.expect_consistent_counters();
}

TEST(WarmUp, TheHistoryOfARunIsTheNextOnesList) {
  ManagerRig first(options(20));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(first.run(2, first.uses({3, 9})).ok());
  ASSERT_TRUE(first.run(3, first.uses({5})).ok());
  const std::string text = first.manager().usage().to_text("model");
  ManagerRig second(options(20));
  ASSERT_TRUE(second.manager().usage().from_text(text, "model").ok());
  second.manager().warm_up(second.manager().usage().most_used());
  while (second.manager().warming_up()) second.manager().pump();
  for (const ExpertId id : {ExpertId{2, 3}, ExpertId{2, 9}, ExpertId{3, 5}})
    EXPECT_TRUE(second.manager().cache().resident(id));
  EXPECT_EQ(second.manager().cache().num_evictable(), 3);
}

}  // namespace
}  // namespace stoker
