// Where experts lie and who computes them changes no bit: devices without hardware beside the host,
// with many slots and few, by every rule, for layers on one device and on several, computing late.
#include <gtest/gtest.h>

#include "cpu/factory.h"
#include "cpu/reference_backend.h"
#include "tests/support/device_backend.h"
#include "tests/support/late_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/thread_sanitizer.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::DeviceBackend;
using test::LateBackend;
using test::TinyEngine;
using test::TinyPaging;
using test::TinyTiers;
using Rows = std::vector<std::vector<float>>;

constexpr int kPrompt = 24, kDecoded = 12;

// Logits of a prompt, then of tokens one by one, then of a second prompt.
Rows run(TinyEngine& engine) {
  const auto tokens = test::random_tokens(2 * kPrompt + kDecoded, engine.config().vocab_size, 11);
  KvSequence kv = engine.sequence();
  const auto prompt = std::span(tokens).first(kPrompt);
  Rows rows = engine.feed(kv, prompt, Purpose::kPrefill, Logits::kAll);
  for (int i = kPrompt; i < kPrompt + kDecoded; ++i) {
    const auto row = engine.feed(kv, std::span(tokens).subspan(static_cast<std::size_t>(i), 1),
                                 Purpose::kDecode, Logits::kLast);
    rows.push_back(row.front());
  }
  for (const auto& row :
       engine.feed(kv, std::span(tokens).last(kPrompt), Purpose::kPrefill, Logits::kAll)) {
    rows.push_back(row);
  }
  return rows;
}

std::unique_ptr<Backend> reference() { return std::make_unique<ReferenceBackend>(); }

// The host last; its layers on the devices in order.
EngineBackends backends(int num_devices, bool late, int num_layers = 4,
                        std::vector<const DeviceBackend*>* devices = nullptr) {
  EngineBackends result;
  for (int i = 0; i < num_devices; ++i) {
    auto device = std::make_unique<DeviceBackend>(reference(), DeviceId{i + 1});
    if (devices != nullptr) devices->push_back(device.get());
    if (late) {
      result.backends.push_back(std::make_unique<LateBackend>(std::move(device), 3));
    } else {
      result.backends.push_back(std::move(device));
    }
  }
  result.backends.push_back(reference());
  for (int layer = 0; layer < num_layers; ++layer)
    result.dense.push_back(layer * num_devices / num_layers);
  return result;
}

const Rows& expected() {
  static const Rows rows = [] {
    TinyEngine engine(test::tiny_config(), reference());
    return run(engine);
  }();
  return rows;
}

// Devices, whether they compute late, the rule, slots on each device, slots in RAM.
using Slots = std::pair<int, int>;
class TieredForward : public testing::TestWithParam<std::tuple<int, bool, TierRule, Slots>> {};

TEST_P(TieredForward, GivesTheBitsOfOneBackend) {
  SKIP_UNDER_THREAD_SANITIZER();
  const auto [num_devices, late, rule, slots] = GetParam();
  const auto [device_slots, ram_slots] = slots;
  TinyPaging paging;
  paging.num_slots = ram_slots;
  paging.reader.shuffled = true;
  paging.reader.max_per_reap = 3;
  paging.manager.prefetch.adaptive = false;
  paging.tiers = TinyTiers{.num_slots = device_slots, .polls_per_copy = 2};
  paging.tiers->options.rule = rule;
  std::vector<const DeviceBackend*> devices;
  TinyEngine engine(test::tiny_config(), backends(num_devices, late, 4, &devices),
                    test::kTinyRunner, nullptr, paging);
  EXPECT_EQ(run(engine), expected());
  const LayerCounters counted = engine.runner().expert_counters();
  const std::int64_t demanded = counted.hit + counted.late + counted.miss;
  EXPECT_EQ(counted.device_hit > 0, device_slots > 0);
  EXPECT_EQ(counted.device_hit + counted.device_upload == demanded, rule == TierRule::kDevice);
  // Prompts read copies on another device than their layer's, where that had no room for them.
  int num_peer_parts = 0;
  for (const DeviceBackend* device : devices) num_peer_parts += device->num_peer_parts();
  EXPECT_EQ(num_peer_parts > 0, num_devices > 1 && device_slots > 0 && device_slots < 36);
}

INSTANTIATE_TEST_SUITE_P(
    Tiers, TieredForward,
    testing::Combine(testing::Values(1, 2), testing::Bool(),
                     testing::Values(TierRule::kSchedule, TierRule::kHost, TierRule::kDevice,
                                     TierRule::kAlternate, TierRule::kShare),
                     testing::Values(Slots(0, 36), Slots(1, 3), Slots(7, 8), Slots(36, 5))));

// What devices measure on the way reaches the scheduler's costs.
TEST(TieredForwardCosts, FollowWhatDevicesMeasured) {
  auto owned = std::make_unique<DeviceBackend>(reference(), DeviceId{1});
  DeviceBackend* const device = owned.get();
  EngineBackends both;
  both.backends.push_back(std::move(owned));
  both.backends.push_back(reference());
  both.dense.assign(4, 0);
  TinyPaging paging;
  paging.tiers = TinyTiers{.num_slots = 7};
  paging.tiers->options.rule = TierRule::kDevice;
  TinyEngine engine(test::tiny_config(), std::move(both), test::kTinyRunner, nullptr, paging);
  const auto& tiers = dynamic_cast<TieredExperts&>(engine.runner().experts());
  const double before = tiers.costs().device(0).of(1);
  device->measure({.num_experts = 1, .num_rows = 1, .compute_us = 1.5 * before});
  const auto tokens = test::random_tokens(1, engine.config().vocab_size, 11);
  KvSequence kv = engine.sequence();
  engine.feed(kv, tokens, Purpose::kDecode, Logits::kLast);
  EXPECT_GT(tiers.costs().device(0).of(1), before);
  EXPECT_FALSE(device->take_expert_timing());
}

// Decode's experts have one arithmetic everywhere: a host of another instruction set changes
// nothing.
TEST(TieredExpertsArithmetic, TheHostsInstructionSetDoesNotShow) {
  Team team(1);
  const auto cpu = [&](Isa isa) {
    CpuBackendOptions options;
    options.isa = isa;
    options.team = &team;
    return make_cpu_backend(options).value();
  };
  const auto device = [&] {
    return std::make_unique<DeviceBackend>(cpu(Isa::kScalar), DeviceId{1});
  };
  TinyEngine alone(test::tiny_config(), device(), test::kTinyRunner, nullptr,
                   {.tiers = TinyTiers()});
  const Rows wanted = run(alone);
  for (const TierRule rule : {TierRule::kSchedule, TierRule::kHost, TierRule::kAlternate}) {
    EngineBackends both;
    both.backends.push_back(device());
    both.backends.push_back(cpu(best_isa()));
    TinyPaging paging;
    paging.tiers = TinyTiers{.num_slots = 5};
    paging.tiers->options.rule = rule;
    TinyEngine engine(test::tiny_config(), std::move(both), test::kTinyRunner, nullptr, paging);
    EXPECT_EQ(run(engine), wanted);
    const LayerCounters counted = engine.runner().expert_counters();
    EXPECT_LT(counted.device_hit + counted.device_upload,
              counted.hit + counted.late + counted.miss);
  }
}

// A device that is lost ends the step; the session is as it was, and goes on when it is back.
TEST(TieredExpertsFaults, ALostDeviceEndsTheStepAndNothingElse) {
  SKIP_UNDER_THREAD_SANITIZER();
  for (const int lost : {0, 1}) {
    EngineBackends both = backends(2, true);
    auto& late = static_cast<LateBackend&>(*both.backends[static_cast<std::size_t>(lost)]);
    TinyPaging paging;
    paging.tiers = TinyTiers{.num_slots = 7};
    TinyEngine engine(test::tiny_config(), std::move(both), test::kTinyRunner, nullptr, paging);
    const auto tokens = test::random_tokens(kPrompt, engine.config().vocab_size, 11);
    KvSequence kv = engine.sequence();
    const Segment segment{&kv, 0, kPrompt, Purpose::kPrefill, Logits::kAll};
    for (const int operation : {0, 3, 17, 30, 40}) {
      late.fail_at(operation);
      const auto failed = engine.runner().run({tokens, {&segment, 1}});
      ASSERT_FALSE(failed.ok()) << operation;
      EXPECT_NE(failed.error().message().find("the device was lost"), std::string::npos);
      EXPECT_EQ(kv.length(), 0);
      late.fail_at(-1);
    }
    const Rows rows = engine.feed(kv, tokens, Purpose::kPrefill, Logits::kAll);
    EXPECT_EQ(rows, Rows(expected().begin(), expected().begin() + kPrompt));
  }
}

}  // namespace
}  // namespace stoker
