#include "core/runtime/expert_costs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace stoker {
namespace {

const ComputeCost kHost = {.expert_us = 200, .row_us = 20};
const DeviceCosts kDevices[] = {{{30, 2}, 4e-5}, {{60, 4}, 8e-5}};
constexpr std::int64_t kExpertBytes = 10'000'000;

TEST(ExpertCosts, AreTheGivenOnesAtFirst) {
  const ExpertCosts costs(kHost, kDevices);
  EXPECT_EQ(costs.host().of(3), 260);
  EXPECT_EQ(costs.device(1).of(3), 72);
  EXPECT_DOUBLE_EQ(costs.upload_us(0, kExpertBytes), 400);
  EXPECT_DOUBLE_EQ(costs.upload_us(1, kExpertBytes), 800);
}

TEST(ExpertCosts, WhatIsAsExpectedChangesNothing) {
  ExpertCosts costs(kHost, kDevices);
  costs.observe_host(3, 7, 3 * 200 + 7 * 20);
  costs.observe_device(0, 2, 2, 64);
  costs.observe_upload(1, 3 * kExpertBytes, 2400);
  EXPECT_DOUBLE_EQ(costs.host().of(5), kHost.of(5));
  EXPECT_DOUBLE_EQ(costs.device(0).of(5), kDevices[0].compute.of(5));
  EXPECT_DOUBLE_EQ(costs.upload_us(1, kExpertBytes), 800);
}

TEST(ExpertCosts, FollowWhatIsMeasured) {
  ExpertCosts costs(kHost, kDevices);
  // Everything takes three times as long, or a third.
  for (int i = 0; i < 60; ++i) {
    costs.observe_host(8, 8, 3 * 8 * kHost.of(1));
    costs.observe_device(1, 2, 2, 2 * kDevices[1].compute.of(1) / 3);
    costs.observe_upload(0, 2 * kExpertBytes, 3 * 800);
  }
  EXPECT_NEAR(costs.host().of(1), 3 * kHost.of(1), 0.01 * 3 * kHost.of(1));
  EXPECT_NEAR(costs.device(1).of(1), kDevices[1].compute.of(1) / 3, 0.01 * 64 / 3);
  EXPECT_NEAR(costs.upload_us(0, kExpertBytes), 1200, 12);
  // Rows nearly keep their share as long as nothing is known about them; other devices keep all.
  EXPECT_NEAR(costs.host().row_us / costs.host().expert_us, 0.1, 0.025);
  EXPECT_EQ(costs.device(0).of(1), 32);
  EXPECT_DOUBLE_EQ(costs.upload_us(1, kExpertBytes), 800);
}

TEST(ExpertCosts, TellRowsFromExperts) {
  ExpertCosts costs({.expert_us = 50, .row_us = 100}, {});
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const int num_experts = 1 + static_cast<int>(random() % 8);
    const int num_rows = num_experts * (1 + static_cast<int>(random() % 16));
    const double noise = 0.95 + 0.1 * (random() / 4294967296.0);
    costs.observe_host(num_experts, num_rows, noise * (num_experts * 200 + num_rows * 15));
  }
  EXPECT_NEAR(costs.host().expert_us, 200, 20);
  EXPECT_NEAR(costs.host().row_us, 15, 1.5);
}

TEST(ExpertCosts, OneStallMovesThemByATenth) {
  ExpertCosts costs(kHost, kDevices);
  costs.observe_host(1, 1, 1e9);
  costs.observe_device(0, 1, 1, 1e9);
  costs.observe_upload(0, kExpertBytes, 1e9);
  EXPECT_LE(costs.host().of(1), 1.1 * kHost.of(1));
  EXPECT_LE(costs.device(0).of(1), 1.1 * kDevices[0].compute.of(1));
  EXPECT_LE(costs.upload_us(0, kExpertBytes), 1.1 * 400);
  costs.observe_upload(1, kExpertBytes, 1e-9);
  EXPECT_GE(costs.upload_us(1, kExpertBytes), 0.9 * 800);
}

TEST(ExpertCosts, StallsNowAndThenAreMostlyIgnored) {
  ExpertCosts costs(kHost, {});
  for (int i = 0; i < 400; ++i) {
    costs.observe_host(1, 1, i % 20 == 0 ? 100 * kHost.of(1) : kHost.of(1));
  }
  EXPECT_NEAR(costs.host().of(1), kHost.of(1), 0.1 * kHost.of(1));  // a mean would be 6 times that
}

TEST(ExpertCosts, TheFirstObservationIsTakenWhereNothingIsKnown) {
  const DeviceCosts unknown;
  ExpertCosts costs({}, {&unknown, 1});
  EXPECT_EQ(costs.host().of(4), 0);
  costs.observe_host(2, 2, 500);
  costs.observe_device(0, 4, 8, 100);
  costs.observe_upload(0, kExpertBytes, 700);
  EXPECT_DOUBLE_EQ(2 * costs.host().of(1), 500);
  EXPECT_DOUBLE_EQ(4 * costs.device(0).of(2), 100);
  EXPECT_GT(costs.host().row_us, 0);
  EXPECT_DOUBLE_EQ(costs.upload_us(0, kExpertBytes), 700);
}

TEST(ExpertCosts, WhatIsNoMeasurementIsIgnored) {
  ExpertCosts costs(kHost, kDevices);
  for (const double us : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    costs.observe_host(1, 1, us);
    costs.observe_device(0, 1, 1, us);
    costs.observe_upload(0, kExpertBytes, us);
  }
  costs.observe_host(0, 0, 10);
  costs.observe_upload(0, 0, 10);
  EXPECT_EQ(costs.host().of(1), kHost.of(1));
  EXPECT_EQ(costs.device(0).of(1), kDevices[0].compute.of(1));
  EXPECT_DOUBLE_EQ(costs.upload_us(0, kExpertBytes), 400);
}

}  // namespace
}  // namespace stoker
