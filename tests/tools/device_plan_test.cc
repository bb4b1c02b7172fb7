#include "tools/device_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace stoker::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::int64_t kMiB = 1 << 20, kGiB = std::int64_t{1} << 30;

// Eight layers of 64 MiB weights and 16 MiB caches, all but the first with 32 experts of 4 MiB.
DeviceNeed small_need() {
  DeviceNeed need;
  need.weight_bytes.assign(8, 64 * kMiB);
  need.kv_page_bytes.assign(8, {kMiB / 4, 0});
  need.head_bytes = 40 * kMiB;
  need.workspace_bytes = 24 * kMiB;
  need.experts_bytes = 8 * kMiB;
  need.context_tokens = 4096;
  need.slot_bytes = 4 * kMiB;
  need.num_experts.assign(8, 32);
  need.num_experts.front() = 0;
  return need;
}

// 60 layers of 1 GiB, whose activations a small card does not hold beside one of them.
DeviceNeed large_need() {
  DeviceNeed need;
  need.weight_bytes.assign(60, kGiB);
  need.kv_page_bytes.assign(60, {kMiB, 0});
  need.num_experts.assign(60, 0);
  need.workspace_bytes = 3 * kGiB;
  need.context_tokens = 4096;
  return need;
}

DeviceRoom room(int gpu, std::int64_t free_bytes) { return {gpu, free_bytes, 32 * kMiB}; }

TEST(DeviceAllocationBytes, AreBlocksOrShareOne) {
  EXPECT_EQ(device_allocation_bytes(0), 0);
  EXPECT_EQ(device_allocation_bytes(1), 512);
  EXPECT_EQ(device_allocation_bytes(512), 512);
  EXPECT_EQ(device_allocation_bytes(512 << 10), 512 << 10);
  EXPECT_EQ(device_allocation_bytes(700 << 10), kMiB);
  EXPECT_EQ(device_allocation_bytes(kMiB), kMiB);
  EXPECT_EQ(device_allocation_bytes(kMiB + 1), 2 * kMiB);
  EXPECT_EQ(device_allocation_bytes(2 * kMiB + 1), 4 * kMiB);
  EXPECT_EQ(device_allocation_bytes(112 * kMiB), 112 * kMiB);
}

TEST(PlanDevices, WhatOneDeviceHasLeftHoldsExperts) {
  const std::vector<DeviceRoom> rooms = {room(0, 8 * kGiB)};
  const DevicePlan all = plan_devices(small_need(), rooms, 0).value();
  ASSERT_EQ(all.devices.size(), 1u);
  EXPECT_EQ(all.devices[0].budget_bytes, 8 * kGiB - kGiB / 2);
  EXPECT_EQ(all.devices[0].fixed_bytes, (8 * 80 + 40 + 24 + 32) * kMiB);
  EXPECT_EQ(all.devices[0].num_slots, 7 * 32);  // not more than there are
  EXPECT_EQ(all.layer_device, std::vector<int>(8, 0));
  const DevicePlan tight = plan_devices(small_need(), rooms, 743 * kMiB).value();
  EXPECT_EQ(tight.devices[0].budget_bytes, 743 * kMiB);
  EXPECT_EQ(tight.devices[0].num_slots, 1);  // 7 MiB are left: a hard limit
  const DevicePlan none = plan_devices(small_need(), rooms, 736 * kMiB).value();
  EXPECT_EQ(none.devices[0].num_slots, 0);
}

TEST(PlanDevices, UnequalDevicesShareTheLayers) {
  const std::vector<DeviceRoom> rooms = {room(0, 3 * kGiB), room(1, kGiB)};
  const DevicePlan plan = plan_devices(small_need(), rooms, 0).value();
  EXPECT_THAT(plan.layer_device, ElementsAre(0, 0, 0, 0, 0, 0, 1, 1));
  EXPECT_EQ(plan.devices[0].num_layers, 6);
  EXPECT_EQ(plan.devices[0].num_slots, 7 * 32);  // those of its own 5 layers, and others
  EXPECT_EQ(plan.devices[1].fixed_bytes, (2 * 80 + 40 + 24 + 32) * kMiB);
  EXPECT_EQ(plan.devices[1].num_slots, (1024 - 64 - 256) / 4 - 1);  // their allocation is aligned
}

TEST(PlanDevices, DevicesOnOneGpuShareIt) {
  const std::vector<DeviceRoom> rooms = {room(0, 4 * kGiB), room(0, 4 * kGiB)};
  const DevicePlan plan = plan_devices(small_need(), rooms, 0).value();
  for (const DevicePlan::Device& device : plan.devices) {
    EXPECT_EQ(device.budget_bytes, 2 * kGiB - kGiB / 8);
    EXPECT_EQ(device.num_layers, 4);
  }
}

TEST(PlanDevices, MoreDevicesThanLayers) {
  DeviceNeed need = small_need();
  need.weight_bytes.resize(2);
  need.kv_page_bytes.resize(2);
  need.num_experts.resize(2);
  const std::vector<DeviceRoom> rooms(5, room(0, 4 * kGiB));
  const DevicePlan plan = plan_devices(need, rooms, 0).value();
  EXPECT_TRUE(std::is_sorted(plan.layer_device.begin(), plan.layer_device.end()));
  int num_layers = 0, num_idle = 0;
  for (const DevicePlan::Device& device : plan.devices) {
    num_layers += device.num_layers;
    EXPECT_EQ(device.num_slots, 32);  // also those without layers compute experts
    if (device.num_layers > 0) continue;
    ++num_idle;
    EXPECT_EQ(device.fixed_bytes, (8 + 32) * kMiB);
  }
  EXPECT_EQ(num_layers, 2);
  EXPECT_EQ(num_idle, 3);
}

TEST(PlanDevices, RefusesWithTheNumbers) {
  const auto refusal = [](std::vector<DeviceRoom> rooms, std::int64_t vram) {
    const Result<DevicePlan> plan = plan_devices(small_need(), rooms, vram);
    EXPECT_FALSE(plan.ok());
    if (plan.ok()) return std::string();
    EXPECT_EQ(plan.error().code(), ErrorCode::kResource);
    return plan.error().message();
  };
  EXPECT_EQ(
      refusal({room(0, 8 * kGiB)}, 512 * kMiB),
      "device 0 (GPU 0) may take 0.50 GiB; its 8 layers need 0.54 for weights, 0.12 for 4096 "
      "tokens of context, 0.02 for activations and 0.03 for scratch: give it at least "
      "771751936 bytes (0.72 GiB, --vram), use more devices (--devices) or lower --prefill-rows");
  EXPECT_EQ(refusal({room(2, 3 * kGiB), room(2, 3 * kGiB)}, 2 * kGiB),
            "--vram 2.00 GiB: GPU 2 has 1.50 GiB free for each of its 2 device(s); free some or "
            "give it less; without a device on GPU 2 it fits: --devices 2");
}

TEST(PlanDevices, RefusalNamesABudgetThatIsEnough) {
  const std::vector<DeviceRoom> rooms = {room(0, 8 * kGiB), room(0, 8 * kGiB), room(1, 8 * kGiB)};
  const std::string message =
      plan_devices(small_need(), rooms, 100 * kMiB).error().message();  // the head is on the last
  EXPECT_THAT(message, HasSubstr("device 2 (GPU 1) may take 0.10 GiB; its 3 layers"));
  const std::string before = "give it at least ";
  const std::int64_t enough = std::stoll(message.substr(message.find(before) + before.size()));
  EXPECT_TRUE(plan_devices(small_need(), rooms, enough).ok());
  EXPECT_FALSE(plan_devices(small_need(), rooms, enough - 1).ok());
}

// With --vram budgets are equal, and more layers fall to the smaller GPU than without.
TEST(PlanDevices, RefusalNamesNoBudgetThatGpusHaveNot) {
  const auto message = [](const std::vector<DeviceRoom>& rooms, std::int64_t vram) {
    return plan_devices(large_need(), rooms, vram).error().message();
  };
  using testing::Not;
  EXPECT_THAT(message({room(0, 60 * kGiB), room(1, 20 * kGiB)}, 0), Not(HasSubstr("at least")));
  EXPECT_THAT(message({room(0, 8 * kGiB)}, 0), Not(HasSubstr("at least")));
  // Without --vram a sixteenth is left free.
  EXPECT_THAT(message({room(0, 68 * kGiB)}, 0), HasSubstr("give it at least"));
}

TEST(PlanDevices, RefusalNamesDevicesThatWouldDo) {
  DeviceNeed need = large_need();
  need.weight_bytes.assign(8, 4 * kGiB);
  need.kv_page_bytes.resize(8);
  need.num_experts.resize(8);
  need.workspace_bytes = 2 * kGiB;
  need.head_bytes = kGiB;
  const std::vector<DeviceRoom> rooms = {room(0, 2 * kGiB), room(1, 24 * kGiB), room(2, 20 * kGiB),
                                         room(3, 5 * kGiB)};
  const std::string message = plan_devices(need, rooms, 0).error().message();
  const std::string before = "--devices ";
  std::vector<DeviceRoom> named;
  for (const char c : message.substr(message.rfind(before) + before.size())) {
    if (c != ',') named.push_back(rooms.at(static_cast<std::size_t>(c - '0')));
  }
  EXPECT_THAT(named, testing::SizeIs(testing::Gt(1)));
  EXPECT_LT(named.size(), rooms.size());
  EXPECT_TRUE(plan_devices(need, named, 0).ok()) << message;
}

TEST(PlanDevices, RefusalNamesAContextThatFits) {
  const std::vector<DeviceRoom> rooms = {room(0, 8 * kGiB)};
  DeviceNeed need = small_need();
  const auto message = [&] { return plan_devices(need, rooms, 700 * kMiB).error().message(); };
  EXPECT_THAT(message(), HasSubstr(", shorten the context (2560 tokens would fit) or lower"));
  need.context_flag = {"--context", 64};
  EXPECT_THAT(message(), HasSubstr(" (2496 tokens would fit, --context) or"));
  need.context_flag.tokens_beside = 2560;
  EXPECT_THAT(message(), testing::Not(HasSubstr("shorten")));
  need.context_tokens = 2560;
  EXPECT_TRUE(plan_devices(need, rooms, 700 * kMiB).ok());
  need.context_tokens = 2560 + kPageTokens;  // another block of every layer
  EXPECT_FALSE(plan_devices(need, rooms, 700 * kMiB).ok());
}

TEST(ChooseDevices, LeavesOutWhatDoesNotHoldItsShare) {
  const std::vector<DeviceRoom> rooms = {room(0, 4 * kGiB), room(1, 80 * kGiB), room(2, 80 * kGiB)};
  const DeviceChoice choice = choose_devices(large_need(), rooms, 0).value();
  ASSERT_EQ(choice.left_out.size(), 1u);
  EXPECT_EQ(choice.left_out[0].gpu, 0);
  EXPECT_EQ(choice.left_out[0].why, "its 1 layer and buffers need 4.09 GiB, it may take 3.75");
  ASSERT_EQ(choice.plan.devices.size(), 2u);
  EXPECT_EQ(choice.plan.devices[0].gpu, 1);
  EXPECT_EQ(choice.plan.devices[0].num_layers, 30);
  EXPECT_EQ(choice.plan.devices[1].num_layers, 30);
  // Who named them is told.
  EXPECT_THAT(plan_devices(large_need(), rooms, 0).error().message(),
              testing::EndsWith("; without a device on GPU 0 it fits: --devices 1,2"));
  // So is a card that has not what each may take.
  const DeviceChoice with_vram = choose_devices(large_need(), rooms, 60 * kGiB).value();
  ASSERT_EQ(with_vram.left_out.size(), 1u);
  EXPECT_EQ(with_vram.left_out[0].why, "it has 4.00 GiB free, --vram is 60.00");
}

TEST(ChooseDevices, LeavesOutWhatNoLayerFallsTo) {
  const std::vector<DeviceRoom> rooms = {room(0, 8 * kGiB), room(1, kGiB / 4), room(2, 8 * kGiB)};
  const DeviceChoice choice = choose_devices(small_need(), rooms, 0).value();
  ASSERT_EQ(choice.left_out.size(), 1u);
  EXPECT_EQ(choice.left_out[0].gpu, 1);
  EXPECT_EQ(choice.left_out[0].why, "its share is less than a layer");
  EXPECT_THAT(choice.plan.layer_device, ElementsAre(0, 0, 0, 0, 1, 1, 1, 1));
  EXPECT_EQ(choice.plan.devices[1].gpu, 2);
}

TEST(ChooseDevices, RefusesAsAllOfThemWere) {
  const std::vector<DeviceRoom> rooms = {room(0, kGiB / 4), room(1, kGiB / 4)};
  const Result<DeviceChoice> choice = choose_devices(small_need(), rooms, 0);
  ASSERT_FALSE(choice.ok());
  EXPECT_EQ(choice.error().code(), ErrorCode::kResource);
  EXPECT_THAT(choice.error().message(), HasSubstr("its 4 layers need"));
  EXPECT_EQ(choice.error().message(), plan_devices(small_need(), rooms, 0).error().message());
}

// What would still be in the way once the small card is left out.
TEST(ChooseDevices, AShortOfMemoryCardIsNotTheReasonIfTheOthersAreTooFew) {
  const std::vector<DeviceRoom> rooms = {room(0, 4 * kGiB), room(1, 80 * kGiB)};
  const Result<DeviceChoice> choice = choose_devices(large_need(), rooms, 20 * kGiB);
  ASSERT_FALSE(choice.ok());
  EXPECT_THAT(choice.error().message(), HasSubstr("(GPU 1) may take 20.00 GiB; its 60 layers"));
  // Nor is one that has not even what its backend takes for itself.
  const std::vector<DeviceRoom> others = {
      {0, 16 * kMiB, 32 * kMiB}, room(1, 20 * kGiB), room(2, 20 * kGiB)};
  EXPECT_THAT(choose_devices(large_need(), others, 0).error().message(),
              HasSubstr("its 30 layers need"));
  // If all are short of --vram, the first.
  EXPECT_THAT(choose_devices(large_need(), rooms, 90 * kGiB).error().message(),
              HasSubstr("GPU 0 has 4.00 GiB free"));
}

}  // namespace
}  // namespace stoker::tools
