// Experts in RAM and in slots of a device, over patterns of bytes: who is computed where, what is
// copied up, and that every part holds what it should whatever is under way.
#include "prefetch/tiered_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/prefetch/manager_rig.h"
#include "tests/support/thread_sanitizer.h"

namespace stoker {
namespace {

using test::ManagerRig;
using test::RigOptions;

constexpr DeviceId kDevice{1}, kOtherDevice{2};

RigOptions tiers(TierRule rule) {
  RigOptions options;
  options.tiers = true;
  options.tier_options.rule = rule;
  options.manager.prefetch.enabled = false;
  return options;
}

// Demands `experts` of layer 1 `times` times; steps go by, so that copies come to an end.
void demand(ManagerRig& rig, const std::set<int>& experts, int times = 1) {
  for (int i = 0; i < times; ++i) {
    ASSERT_TRUE(rig.run(1, rig.uses(experts)).ok());
    for (int step = 0; step < 10; ++step) rig.provider().begin_step({});
  }
}

// As many as both have something of.
const std::set<int> kEight = {0, 1, 2, 3, 4, 5, 6, 7};
RigOptions eight_a_token() {
  RigOptions options = tiers(TierRule::kSchedule);
  options.num_experts = 32;
  options.num_slots = 96;
  options.top_k = 8;
  options.tier_options.promotes = false;
  return options;
}

bool on_device(ManagerRig& rig, int expert, int device = 0) {
  return rig.tiers().cache(device).resident({1, expert});
}

// The copy of an expert that a device has, or is getting.
struct Place {
  DeviceId device;  // kHost: none
  bool resident = false;
};

std::map<int, Place> places_of(ManagerRig& rig, int layer, std::span<const ExpertUse> uses) {
  std::map<int, Place> places;
  for (std::size_t use = 0; use < uses.size(); ++use) {
    const ExpertId id{layer, uses[use].expert};
    Place place;
    for (int device = 0; device < rig.tiers().num_devices(); ++device) {
      const ExpertCache& cache = rig.tiers().cache(device);
      if (cache.slot_of(id)) place = {DeviceId{device + 1}, cache.resident(id)};
    }
    places[static_cast<int>(use)] = place;
  }
  return places;
}

class RandomTiers : public testing::TestWithParam<std::tuple<TierRule, int, int, int>> {};

TEST_P(RandomTiers, EveryPartComesOnceAndHoldsItsBytes) {
  SKIP_UNDER_THREAD_SANITIZER();
  const auto [rule, num_devices, device_slots, ram_slots] = GetParam();
  for (unsigned seed = 1; seed <= 4; ++seed) {
    RigOptions options = tiers(rule);
    options.seed = seed;
    options.num_devices = num_devices;
    options.device_slots = device_slots;
    options.num_slots = ram_slots;
    options.polls_per_copy = 1 + static_cast<int>(seed) * 3;
    options.manager.prefetch.enabled = seed % 2 == 0;
    options.reader.shuffled = true;
    options.reader.max_per_reap = 4;
    ManagerRig rig(options);
    std::int64_t num_uses = 0;
    for (int step = 0; step < 150; ++step) {
      const bool sweep = rig.pick(8) == 0;
      rig.provider().begin_step({});
      for (int layer = 1; layer <= options.num_layers; ++layer) {
        const std::set<int> experts =
            rig.random_experts(sweep ? 1 + rig.pick(options.num_experts) : options.top_k);
        std::vector<ExpertUse> uses = rig.uses(experts, sweep ? 40 : 1);
        for (ExpertUse& use : uses) use.num_decode_rows = sweep ? rig.pick(2) * 40 : 1;
        const std::map<int, Place> places = places_of(rig, layer, uses);
        const bool stop = rig.pick(12) == 0;
        const Status status = rig.run(layer, uses, stop ? rig.pick(6) : INT_MAX);
        num_uses += static_cast<std::int64_t>(uses.size());
        if (stop) break;
        ASSERT_TRUE(status.ok()) << status.error().message();
        for (const auto& [use, site] : rig.sites()) {
          const bool prefill = uses[static_cast<std::size_t>(use)].num_decode_rows == 0;
          const Place& place = places.at(use);
          if (prefill) {
            EXPECT_EQ(site, rig.home(layer));
          } else if (place.resident) {
            EXPECT_EQ(site, place.device);
          } else if (rule == TierRule::kSchedule) {
            EXPECT_TRUE(site == kHost || (site.index >= 1 && site.index <= num_devices));
          } else {
            const bool home_takes = rule != TierRule::kHost && site == rig.home(layer);
            EXPECT_TRUE(site == kHost || home_takes || site == place.device);
          }
        }
      }
      rig.expect_consistent_counters();
      ASSERT_FALSE(HasFailure()) << "step " << step;
    }
    const LayerCounters total = rig.total();
    EXPECT_EQ(total.hit + total.late + total.miss, num_uses);
    EXPECT_GT(total.promoted_bytes, 0);
    EXPECT_GT(total.device_hit, 0);
    EXPECT_LE(total.device_hit, total.hit);
    rig.settle();
  }
}

INSTANTIATE_TEST_SUITE_P(All, RandomTiers,
                         testing::Combine(testing::Values(TierRule::kSchedule, TierRule::kHost,
                                                          TierRule::kAlternate, TierRule::kShare),
                                          testing::Values(1, 2), testing::Values(1, 5, 48),
                                          testing::Values(4, 9, 48)));

TEST(TieredExperts, WhatADeviceHoldsIsNotReadAgain) {
  RigOptions options = tiers(TierRule::kHost);
  options.num_slots = options.top_k;
  ManagerRig rig(options);
  demand(rig, {0, 1, 2, 3}, 4);
  for (int expert = 0; expert < 4; ++expert) EXPECT_TRUE(on_device(rig, expert)) << expert;
  demand(rig, {4, 5, 6, 7});  // displaces them in RAM
  const std::int64_t read = rig.manager().bytes_read();
  const std::int64_t misses = rig.total().miss;
  demand(rig, {0, 1, 2, 3});
  EXPECT_EQ(rig.manager().bytes_read(), read);
  EXPECT_EQ(rig.total().miss, misses);
  for (const auto& [use, site] : rig.sites()) EXPECT_EQ(site, kDevice) << use;
}

TEST(TieredExperts, TheCopyInRamGoesFirst) {
  RigOptions options = tiers(TierRule::kHost);
  options.num_slots = 5;
  options.device_slots = 1;
  options.top_k = 4;
  ManagerRig rig(options);
  demand(rig, {0}, 2);
  ASSERT_TRUE(on_device(rig, 0));
  demand(rig, {1, 2, 3, 4});
  EXPECT_TRUE(rig.manager().cache().resident({1, 0}));  // a slot was free
  demand(rig, {5});
  EXPECT_FALSE(rig.manager().cache().resident({1, 0}));
  for (int expert = 1; expert <= 5; ++expert)
    EXPECT_TRUE(rig.manager().cache().resident({1, expert})) << expert;
}

TEST(TieredExperts, OnlyWhatIsHotterByAMarginTakesAPlace) {
  RigOptions options = tiers(TierRule::kHost);
  options.device_slots = 1;
  ManagerRig rig(options);
  demand(rig, {0}, 8);
  ASSERT_TRUE(on_device(rig, 0));
  demand(rig, {1}, 9);  // hotter, but not by a quarter
  EXPECT_TRUE(on_device(rig, 0));
  demand(rig, {1}, 3);
  EXPECT_TRUE(on_device(rig, 1));
  EXPECT_FALSE(on_device(rig, 0));
  EXPECT_EQ(rig.total().promoted_bytes, 2 * rig.arena().slot_bytes());
}

TEST(TieredExperts, WhatADeviceGivesUpIsNotTheNextToGo) {
  RigOptions options = tiers(TierRule::kHost);
  options.num_slots = 5;
  options.device_slots = 1;
  ManagerRig rig(options);
  demand(rig, {0}, 2);
  demand(rig, {1}, 9);
  ASSERT_TRUE(on_device(rig, 1));
  demand(rig, {2, 3, 4});
  ASSERT_TRUE(rig.manager().cache().resident({1, 0}));  // a slot was free
  demand(rig, {5});
  EXPECT_TRUE(rig.manager().cache().resident({1, 0}));
  EXPECT_FALSE(rig.manager().cache().resident({1, 1}));
}

// Two of layer 1, whose device has one slot.
RigOptions two_devices() {
  RigOptions options = tiers(TierRule::kHost);
  options.num_devices = 2;
  options.device_slots = 1;
  return options;
}

TEST(TieredExperts, AnotherDeviceTakesWhatTheLayersOwnHasNoRoomFor) {
  ManagerRig rig(two_devices());
  demand(rig, {0}, 3);
  ASSERT_TRUE(on_device(rig, 0));  // its own comes first
  demand(rig, {1}, 2);             // cooler
  EXPECT_TRUE(on_device(rig, 1, 1));
  const std::int64_t read = rig.manager().bytes_read();
  demand(rig, {0, 1});
  EXPECT_EQ(rig.sites().at(0), kDevice);
  EXPECT_EQ(rig.sites().at(1), kOtherDevice);
  EXPECT_EQ(rig.manager().bytes_read(), read);
  EXPECT_EQ(rig.total().promoted_bytes, 2 * rig.arena().slot_bytes());  // one copy of each
}

// Rows of prefill do not go there: the layer's device reads the other's copy, and no drive is read.
TEST(TieredExperts, PrefillReadsTheCopyOfAnotherDevice) {
  RigOptions options = two_devices();
  options.num_slots = options.top_k;
  ManagerRig rig(options);
  demand(rig, {0}, 3);
  demand(rig, {1}, 2);
  ASSERT_TRUE(on_device(rig, 1, 1));
  demand(rig, {4, 5, 6, 7});  // displaces both in RAM
  const std::int64_t read = rig.manager().bytes_read();
  std::vector<ExpertUse> uses = rig.uses({0, 1}, 6);
  for (ExpertUse& use : uses) use.num_decode_rows = 0;
  ASSERT_TRUE(rig.run(1, uses).ok());
  for (const auto& [use, site] : rig.sites()) EXPECT_EQ(site, kDevice) << use;
  EXPECT_EQ(rig.manager().bytes_read(), read);
}

TEST(TieredExperts, AnotherDeviceComputesWhereTheWayThereIsShort) {
  for (const double travel_us : {0.0, 1e9}) {
    RigOptions options = eight_a_token();
    options.num_devices = 2;
    options.tier_options.travel_us = travel_us;
    ManagerRig rig(options);
    demand(rig, kEight, 2);  // in RAM by now
    int elsewhere = 0;
    for (const auto& [use, site] : rig.sites()) elsewhere += site == kOtherDevice ? 1 : 0;
    EXPECT_EQ(elsewhere > 0, travel_us == 0.0) << elsewhere;
  }
}

TEST(TieredExperts, PrefillStaysWithTheLayersDevice) {
  RigOptions options = tiers(TierRule::kHost);
  options.tier_options.promotes = false;
  ManagerRig rig(options);
  std::vector<ExpertUse> uses = rig.uses({2, 3}, 6);
  uses[0].num_decode_rows = 6;
  uses[1].num_decode_rows = 5;  // one row of prefill among them
  ASSERT_TRUE(rig.run(1, uses).ok());
  EXPECT_EQ(rig.sites().at(0), kHost);
  EXPECT_EQ(rig.sites().at(1), kDevice);
}

TEST(TieredExperts, TheSchedulerUsesBothWhereBothHelp) {
  ManagerRig rig(eight_a_token());
  demand(rig, kEight, 2);  // in RAM by now
  int on_host = 0;
  for (const auto& [use, site] : rig.sites()) on_host += site == kHost ? 1 : 0;
  EXPECT_GT(on_host, 0);
  EXPECT_LT(on_host, 8);
}

TEST(TieredExperts, SharedExpertsKeepTheDeviceBusy) {
  RigOptions options = tiers(TierRule::kSchedule);
  options.tier_options.promotes = false;
  options.tier_options.num_shared_experts = 10000;
  ManagerRig rig(options);
  const std::set<int> experts = {0, 1, 2};
  demand(rig, experts);  // in RAM by now
  const std::vector<TokenId> tokens(4);
  rig.provider().begin_step(tokens);
  ASSERT_TRUE(rig.run(1, rig.uses(experts)).ok());
  for (const auto& [use, site] : rig.sites()) EXPECT_EQ(site, kHost) << use;
}

// From step to step, whatever the number of layers.
TEST(TieredExperts, AlternateAlternates) {
  RigOptions options = tiers(TierRule::kAlternate);
  options.num_layers = 2;
  options.tier_options.promotes = false;
  ManagerRig rig(options);
  DeviceId before = kHost;
  for (int step = 0; step < 4; ++step) {
    rig.provider().begin_step({});
    for (const int layer : {1, 2}) ASSERT_TRUE(rig.run(layer, rig.uses({3})).ok());
    if (step > 0) {
      EXPECT_NE(rig.sites().at(0), before) << step;
    }
    before = rig.sites().at(0);
  }
}

TEST(TieredExperts, CostsFollowWhatADeviceMeasured) {
  ManagerRig rig(eight_a_token());
  demand(rig, kEight, 2);  // in RAM by now
  const ExpertCosts before = rig.tiers().costs();
  constexpr std::int64_t kBytes = 1 << 20;
  // Copies are a thousand times dearer than was measured before.
  for (int i = 0; i < 200; ++i) {
    rig.provider().note_device_time(
        kDevice, {.upload_bytes = kBytes, .upload_us = 1000 * before.upload_us(0, kBytes)});
  }
  EXPECT_GT(rig.tiers().costs().upload_us(0, kBytes), 100 * before.upload_us(0, kBytes));
  EXPECT_EQ(rig.tiers().costs().device(0).expert_us, before.device(0).expert_us);
  demand(rig, kEight);
  for (const auto& [use, site] : rig.sites()) EXPECT_EQ(site, kHost) << use;
  // And computing by half.
  for (int i = 0; i < 200; ++i) {
    rig.provider().note_device_time(
        kDevice, {.num_experts = 8, .num_rows = 8, .compute_us = 4 * before.device(0).of(1)});
  }
  EXPECT_NEAR(rig.tiers().costs().device(0).of(1), before.device(0).of(1) / 2,
              0.01 * before.device(0).of(1));
}

TEST(TieredExperts, ALostDeviceCopiesNothingMore) {
  ManagerRig rig(tiers(TierRule::kHost));
  rig.device_slots().fail();
  demand(rig, {0, 1, 2, 3}, 5);
  EXPECT_EQ(rig.total().promoted_bytes, 0);
  EXPECT_FALSE(on_device(rig, 0));
  for (const auto& [use, site] : rig.sites()) EXPECT_EQ(site, kHost) << use;
  EXPECT_THAT(rig.tiers().take_notices(),
              testing::ElementsAre("device 0 takes no more experts: the device was lost"));
  EXPECT_TRUE(rig.tiers().take_notices().empty());
}

// The copies under way when everything goes read memory that is still there (under ASan).
TEST(TieredExperts, MayGoWhileCopiesAreUnderWay) {
  RigOptions options = tiers(TierRule::kHost);
  options.polls_per_copy = 1000;
  ManagerRig rig(options);
  ASSERT_TRUE(rig.run(1, rig.uses({0, 1, 2, 3})).ok());
  EXPECT_EQ(rig.tiers().cache(0).num_in_flight(), 2);
}

}  // namespace
}  // namespace stoker
