// ExpertManager over memory: adversarial orders, faults, few slots, cancelled steps; and cases
// small enough to say what must happen.
#include "prefetch/expert_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/prefetch/manager_rig.h"
#include "tests/support/thread_sanitizer.h"

namespace stoker {
namespace {

using test::ManagerRig;
using test::ReadFault;
using test::RigOptions;
using testing::HasSubstr;

// ---- Random loops.

// Steps over all layers with random demands, some of them sweeps and some given up. Look-aheads are
// right about half of the experts.
void run_steps(ManagerRig& rig, const RigOptions& options, int num_steps, bool give_up) {
  for (int step = 0; step < num_steps; ++step) {
    const bool sweep = rig.pick(8) == 0;
    std::vector<std::set<int>> demands;
    for (int layer = 1; layer <= options.num_layers; ++layer) {
      demands.push_back(
          rig.random_experts(sweep ? 1 + rig.pick(options.num_experts) : options.top_k));
    }
    for (int layer = 1; layer <= options.num_layers; ++layer) {
      for (const int lead : {1, 2}) {
        if (layer + lead > options.num_layers || rig.pick(10) == 0) continue;
        std::vector<std::int32_t> guesses;
        for (const int expert : demands[layer + lead - 1])
          guesses.push_back(rig.pick(2) == 0 ? expert : rig.pick(options.num_experts));
        rig.hint_during_next(layer + lead, lead, 1, guesses);
      }
      const auto uses = rig.uses(demands[layer - 1], sweep ? 40 : 1);
      const bool stop = give_up && rig.pick(10) == 0;
      const Status status = rig.run(layer, uses, stop ? rig.pick(6) : INT_MAX);
      if (stop) break;
      ASSERT_TRUE(status.ok()) << status.error().message();
      rig.clock().advance(rig.pick(400));  // attention
      if (rig.pick(3) == 0) rig.manager().pump();
    }
    rig.expect_consistent_counters();
    ASSERT_FALSE(testing::Test::HasFailure()) << "step " << step;
  }
  rig.settle();
  rig.expect_consistent_counters();
}

class RandomOrders : public testing::TestWithParam<std::tuple<int, std::string_view>> {};

TEST_P(RandomOrders, EveryPartComesOnceAndHoldsItsBytes) {
  SKIP_UNDER_THREAD_SANITIZER();
  const auto [num_slots, policy] = GetParam();
  for (unsigned seed = 1; seed <= 6; ++seed) {
    RigOptions options;
    options.seed = seed;
    options.num_slots = num_slots;
    options.manager.policy = policy;
    options.manager.prefetch.enabled = seed % 3 != 0;
    options.manager.prefetch.adaptive = seed % 3 == 1;
    options.reader = {
        .seed = seed, .depth = 1 + static_cast<int>(seed) * 3, .shuffled = true, .max_per_reap = 3};
    ManagerRig rig(options);
    run_steps(rig, options, 60, /*give_up=*/true);
  }
}

INSTANTIATE_TEST_SUITE_P(SlotsAndPolicies, RandomOrders,
                         testing::Combine(testing::Values(4, 5, 9, 20, 48),
                                          testing::ValuesIn(eviction_policy_names().begin(),
                                                            eviction_policy_names().end())),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) + "_" +
                                  std::string(std::get<1>(info.param));
                         });

// One read in twelve fails or brings a flipped bit; two of three copies may be bad for good.
TEST(ExpertManager, FaultsAreRetriedAndRepairedAndNeverComputedWith) {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    RigOptions options;
    options.seed = seed;
    options.num_slots = 7 + static_cast<int>(seed);
    options.num_replicas = 3;
    options.manager.prefetch.adaptive = false;
    std::mt19937 random(seed);
    options.reader = {.seed = seed, .depth = 6, .shuffled = true, .max_per_reap = 4};
    options.reader.fault = [&](const BlockRead& read, int replica) {
      const int good = (read.id.expert + read.block) % 3;
      if (replica == good) return ReadFault::kNone;
      const unsigned dice = random() % 12;
      return dice == 0 ? ReadFault::kFails : dice == 1 ? ReadFault::kFlipsABit : ReadFault::kNone;
    };
    ManagerRig rig(options);
    run_steps(rig, options, 50, /*give_up=*/true);
    EXPECT_GT(rig.total().retried_blocks, 0);
    EXPECT_GE(rig.total().retried_blocks, rig.total().repaired_blocks);
  }
}

// ---- What a demand reads, and in which order.

std::vector<std::pair<int, int>> issued(const ManagerRig& rig_const) {
  auto& rig = const_cast<ManagerRig&>(rig_const);
  std::vector<std::pair<int, int>> reads;
  for (const BlockRead& read : rig.reader().issued())
    reads.emplace_back(read.id.expert, read.block);
  return reads;
}

TEST(ExpertManager, GateUpOfAllMissingExpertsIsReadBeforeAnyDown) {
  RigOptions options;
  options.reader.depth = 1;
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5, 9})).ok());
  const std::vector<std::pair<int, int>> expected = {{2, 0}, {2, 1}, {2, 2}, {5, 0}, {5, 1},
                                                     {5, 2}, {9, 0}, {9, 1}, {9, 2}, {2, 3},
                                                     {2, 4}, {5, 3}, {5, 4}, {9, 3}, {9, 4}};
  EXPECT_EQ(issued(rig), expected);
}

TEST(ExpertManager, ResidentExpertsAreRunnableAtOnceAndUnguardedTheSecondTime) {
  RigOptions options;
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5})).ok());
  rig.reader().hold(true);
  const auto uses = rig.uses({2, 5, 7});
  const ExpertSetPtr set = rig.manager().demand(1, uses).value();
  std::vector<ExpertPart> out(100);
  ASSERT_EQ(set->take_ready(out), 10u);
  for (int i = 0; i < 10; ++i) {
    EXPECT_NE(out[i].use, 2);
    EXPECT_EQ(out[i].guard, nullptr);
    EXPECT_EQ(out[i].half == ExpertHalf::kGateUp, i < 6);
  }
  EXPECT_FALSE(set->exhausted());
  EXPECT_EQ(rig.manager().counters(1).hit, 2);
  EXPECT_EQ(rig.manager().counters(1).miss, 3);
}

TEST(ExpertManager, AModelThatFitsIsReadOnce) {
  RigOptions options;
  options.num_slots = options.num_layers * options.num_experts;
  ManagerRig rig(options);
  run_steps(rig, options, 100, /*give_up=*/false);
  EXPECT_LE(rig.reader().load().bytes_read, options.num_slots * 5 * 4096);
}

TEST(ExpertManager, WavesReadEveryExpertOnce) {
  RigOptions options;
  options.num_slots = 4;
  ManagerRig rig(options);
  std::set<int> all;
  for (int expert = 0; expert < options.num_experts; ++expert) all.insert(expert);
  ASSERT_TRUE(rig.run(2, rig.uses(all, 30)).ok());
  EXPECT_EQ(rig.reader().issued().size(), 16u * 5u);
  EXPECT_EQ(rig.manager().counters(2).miss, 16);
}

TEST(ExpertManager, SlotsMayAppearWhileADemandWaits) {
  RigOptions options;
  ManagerRig rig(options);
  rig.arena().set_usable(0);
  const auto uses = rig.uses({1, 2, 3, 4});
  const ExpertSetPtr set = rig.manager().demand(1, uses).value();
  std::vector<ExpertPart> out(100);
  EXPECT_EQ(set->take_ready(out), 0u);
  EXPECT_TRUE(set->status().ok());
  EXPECT_FALSE(set->waits_for_slots());
  rig.arena().set_usable(2);
  std::size_t taken = 0;
  for (int i = 0; i < 10; ++i) taken += set->take_ready(out);
  EXPECT_EQ(taken, 6u);  // the gate/up parts of two experts
  for (std::size_t i = 0; i < 1; ++i) EXPECT_TRUE(set->status().ok());
}

TEST(ExpertManager, AnArenaThatFailsBeforeItsFirstSlotIsTheSetsError) {
  ManagerRig rig(RigOptions{});
  rig.arena().set_usable(0);
  const auto uses = rig.uses({1});
  const ExpertSetPtr set = rig.manager().demand(1, uses).value();
  std::vector<ExpertPart> out(10);
  EXPECT_EQ(set->take_ready(out), 0u);
  rig.arena().fail(Error(ErrorCode::kResource, "no memory for the first slot"));
  ASSERT_FALSE(set->status().ok());
  EXPECT_THAT(set->status().error().message(), HasSubstr("first slot"));
}

// ---- Sweeps.

TEST(ExpertManager, ASweepLeavesDecodesResidentsAlone) {
  RigOptions options;
  options.num_layers = 2;
  options.num_experts = 64;
  options.num_slots = 32;
  ManagerRig rig(options);
  for (int step = 0; step < 3; ++step) {
    for (const int layer : {1, 2}) ASSERT_TRUE(rig.run(layer, rig.uses({1, 2, 3, 4})).ok());
  }
  // 40 experts once each, expert 50 hot, and one of decode's.
  std::set<int> wide;
  for (int expert = 4; expert < 60; ++expert) wide.insert(expert);
  auto uses = rig.uses(wide, 2);
  std::vector<std::int32_t> many(500);
  for (ExpertUse& use : uses) {
    if (use.expert == 50) use.rows = many;
  }
  ASSERT_TRUE(rig.run(1, uses).ok());
  for (const int layer : {1, 2}) {
    for (const int expert : {1, 2, 3, 4})
      EXPECT_TRUE(rig.manager().cache().resident({layer, expert})) << layer << "." << expert;
  }
  EXPECT_TRUE(rig.manager().cache().resident({1, 50}));
}

// ---- Refusals, notices, drafts.

TEST(ExpertManager, FewerSlotsThanATokenNeedsInALayerAreRefusedWithTheNumbers) {
  const test::BlockSource source(3, 2);
  test::MemoryReader reader(source);
  const test::MemoryArena arena(7, source.expert_bytes(0));
  const ManualClock clock;
  const ExpertLayer layers[] = {{3, 64, 8}};
  const auto manager = ExpertManager::create(layers, source, reader, arena, clock, {});
  ASSERT_FALSE(manager.ok());
  EXPECT_EQ(manager.error().code(), ErrorCode::kResource);
  EXPECT_THAT(manager.error().message(), HasSubstr("room for 7 experts, and a token needs 8"));
}

TEST(ExpertManager, FewerSlotsThanATokensCycleAreWarnedOf) {
  RigOptions options;
  options.num_slots = 11;
  ManagerRig few(options);
  EXPECT_THAT(few.manager().take_notices(), testing::ElementsAre(HasSubstr("one token uses 12")));
  EXPECT_TRUE(few.manager().take_notices().empty());
  options.num_slots = 12;
  ManagerRig enough(options);
  EXPECT_TRUE(enough.manager().take_notices().empty());
}

TEST(ExpertManager, ADraftTakesFreeSlotsOnly) {
  RigOptions options;
  options.num_slots = 6;
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({1, 2, 3, 4})).ok());
  // Two slots are free: a draft of three goes through them one after the other.
  ASSERT_TRUE(rig.run(2, rig.uses({1, 2, 3}, 1, /*draft=*/true)).ok());
  for (const int expert : {1, 2, 3, 4}) EXPECT_TRUE(rig.manager().cache().resident({1, expert}));
  // None is free: who is resident is served, who is not is an error, and nobody goes.
  ASSERT_EQ(rig.manager().cache().num_free(), 0);
  ASSERT_TRUE(rig.run(1, rig.uses({2, 4}, 1, /*draft=*/true)).ok());
  const Status status = rig.run(3, rig.uses({5}, 1, /*draft=*/true));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), ErrorCode::kResource);
  for (const int expert : {1, 2, 3, 4}) EXPECT_TRUE(rig.manager().cache().resident({1, expert}));
  ASSERT_TRUE(rig.run(3, rig.uses({5})).ok());
}

// ---- Faults.

TEST(ExpertManager, ABlockThatNoCopyHoldsIsAnErrorWithItsStoryAndTheNextDemandWorks) {
  RigOptions options;
  options.num_replicas = 2;
  bool broken = true;
  options.reader.fault = [&](const BlockRead& read, int) {
    return broken && read.id.expert == 5 && read.block == 1 ? ReadFault::kFlipsABit
                                                            : ReadFault::kNone;
  };
  ManagerRig rig(options);
  const Status status = rig.run(1, rig.uses({2, 5}));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), ErrorCode::kCorrupt);
  EXPECT_THAT(status.error().message(), HasSubstr("block 1 of expert 1.5 is not what it was"));
  EXPECT_THAT(status.error().message(), HasSubstr("read twice, and from 1 other copy"));
  EXPECT_EQ(rig.manager().counters(1).retried_blocks, 2);
  EXPECT_EQ(rig.manager().counters(1).repaired_blocks, 0);
  rig.settle();
  EXPECT_FALSE(rig.manager().cache().slot_of({1, 5}));
  rig.expect_consistent_counters();
  broken = false;
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5})).ok());
  rig.expect_consistent_counters();
}

TEST(ExpertManager, ARepairIsCountedAndSaidOnce) {
  RigOptions options;
  options.num_replicas = 2;
  options.num_slots = 12;
  int first = -1;
  options.reader.fault = [&](const BlockRead& read, int replica) {
    if (read.id != ExpertId{1, 5} || read.block != 4) return ReadFault::kNone;
    if (first < 0) first = replica;
    return replica == first ? ReadFault::kFails : ReadFault::kNone;
  };
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5})).ok());
  EXPECT_EQ(rig.manager().counters(1).retried_blocks,
            2);  // the same copy once more, then the other
  EXPECT_EQ(rig.manager().counters(1).repaired_blocks, 1);
  const auto notices = rig.manager().take_notices();
  ASSERT_EQ(notices.size(), 1u);
  EXPECT_THAT(notices.front(), HasSubstr("expert 5 of layer 1 was repaired from another copy"));
  EXPECT_THAT(notices.front(), HasSubstr("Input/output error"));
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5})).ok());
  EXPECT_EQ(rig.manager().counters(1).repaired_blocks, 1);
}

TEST(ExpertManager, APassingFaultIsARetryAndNoRepair) {
  RigOptions options;
  int reads = 0;
  options.reader.fault = [&](const BlockRead& read, int) {
    return read.id == ExpertId{1, 5} && read.block == 0 && reads++ == 0 ? ReadFault::kFlipsABit
                                                                        : ReadFault::kNone;
  };
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({2, 5})).ok());
  EXPECT_EQ(rig.manager().counters(1).retried_blocks, 1);
  EXPECT_EQ(rig.manager().counters(1).repaired_blocks, 0);
  EXPECT_TRUE(rig.manager().take_notices().empty());
}

// A demand is given up after a block was bad and has been read again, still bad. By the next demand
// the drive is well.
TEST(ExpertManager, WhatFailedForAnEarlierDemandDoesNotCount) {
  RigOptions options;
  int reads = 0;
  bool well = false;
  options.reader.fault = [&](const BlockRead& read, int) {
    if (well || read.id != ExpertId{1, 5} || read.block != 0) return ReadFault::kNone;
    ++reads;
    return ReadFault::kFlipsABit;
  };
  ManagerRig rig(options);
  const auto uses = rig.uses({5});
  {
    const ExpertSetPtr set = rig.manager().demand(1, uses).value();
    std::vector<ExpertPart> parts(10);
    for (bool found = false; !found;) {
      const std::size_t ready = set->take_ready(parts);
      for (std::size_t p = 0; p < ready; ++p) found |= !parts[p].passes_guard();
    }
    rig.manager().pump();  // hears of it
    rig.settle();
    ASSERT_EQ(reads, 2);
  }
  rig.note_demanded(1);
  ASSERT_TRUE(rig.manager().cache().resident({1, 5}));
  well = true;
  ASSERT_TRUE(rig.run(1, uses).ok());
  rig.expect_consistent_counters();
}

// ---- Felt wait.

TEST(ExpertManager, FeltWaitIsTheTimeWithoutPartsWhileNobodyComputes) {
  RigOptions options;
  ManagerRig rig(options);
  const auto uses = rig.uses({3});
  rig.reader().hold(true);
  const ExpertSetPtr set = rig.manager().demand(1, uses).value();
  std::vector<ExpertPart> out(100);
  rig.clock().advance(1000);  // the caller does something else first
  EXPECT_EQ(set->take_ready(out), 0u);
  rig.clock().advance(300);
  EXPECT_EQ(set->take_ready(out), 0u);
  rig.clock().advance(200);
  EXPECT_EQ(rig.manager().counters(1).felt_wait_us, 0);
  rig.reader().hold(false);
  std::size_t ready = 0;
  while (ready == 0) ready = set->take_ready(out);
  EXPECT_EQ(rig.manager().counters(1).felt_wait_us, 500);
  // Parts are out and unchecked: whoever holds them computes.
  while (ready > 0 && ready < 3) ready += set->take_ready(out);
  EXPECT_EQ(set->take_ready(out), 0u);
  rig.clock().advance(400);
  EXPECT_EQ(set->take_ready(out), 0u);
  EXPECT_EQ(rig.manager().counters(1).felt_wait_us, 500);
}

TEST(ExpertManager, OneSetIsOpenAtATime) {
  ManagerRig rig(RigOptions{});
  const auto uses = rig.uses({3});
  const ExpertSetPtr set = rig.manager().demand(1, uses).value();
  EXPECT_DEATH((void)rig.manager().demand(2, uses), "is open");
}

}  // namespace
}  // namespace stoker
