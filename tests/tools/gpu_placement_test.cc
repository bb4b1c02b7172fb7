// The shipped model over pretended GPUs: the whole way from flags to logits.
#include "tools/gpu_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

#include "storage/open_model.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/fake_gpus.h"
#include "tools/model.h"

namespace stoker::tools {
namespace {

using test::FakeGpus;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::int64_t kMiB = 1 << 20, kGiB = std::int64_t{1} << 30;
constexpr int kPromptTokens = 40, kDecodedTokens = 8;

ModelFlags ember() {
  ModelFlags flags;
  flags.model = STOKER_SOURCE_DIR "/models/ember";
  flags.threads = 1;
  flags.ctx = 256;
  return flags;
}

ModelFlags on_gpus(std::vector<int> devices, const std::string& vram,
                   const std::string& expert_site = "auto") {
  ModelFlags flags = ember();
  flags.backend = "cuda";
  flags.devices = std::move(devices);
  flags.vram = vram;
  flags.expert_site = expert_site;
  return flags;
}

// Logits of a prompt's last row and of tokens decoded after it.
std::vector<std::vector<float>> logits_of(LoadedModel& model) {
  std::vector<TokenId> tokens(kPromptTokens + kDecodedTokens);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<TokenId>(300 + i * 37 % 1000);
  }
  std::vector<std::vector<float>> rows;
  KvSequence kv(model.runner->kv_pool());
  const auto feed = [&](std::span<const TokenId> some, Purpose purpose) {
    const Segment segment{&kv, 0, static_cast<int>(some.size()), purpose, Logits::kLast};
    const ForwardPtr forward = model.runner->run({some, {&segment, 1}}).value();
    const auto row = forward->logits().row(0);
    rows.emplace_back(row.begin(), row.end());
  };
  feed(std::span(tokens).first(kPromptTokens), Purpose::kPrefill);
  for (int i = 0; i < kDecodedTokens; ++i) {
    feed(std::span(tokens).subspan(static_cast<std::size_t>(kPromptTokens + i), 1),
         Purpose::kDecode);
  }
  return rows;
}

// What --vram leaves room for so many experts on a device that runs all layers.
std::string vram_with_slots(int num_slots) {
  const ModelFlags flags = on_gpus({0}, "");
  const ModelConfig config = ModelConfig::load(flags.model).value();
  const auto source = storage::open_model(flags.model, config, {}).value();
  RunnerOptions options;
  options.context_tokens = options.prefill_rows = flags.ctx;
  const DevicePlan plan =
      place_on_gpus(flags, config, *source, {}, options, FakeGpus({kGiB})).value().value();
  const std::int64_t slot_bytes = device_need(config, *source, {}, options).slot_bytes;
  return std::to_string(plan.devices[0].fixed_bytes +
                        device_allocation_bytes(cuda_slots_bytes(num_slots, slot_bytes)));
}

class GpuPlacementTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(ember().model + "/config.json")) {
      GTEST_SKIP() << "models/ember is not there";
    }
    ::setenv("XDG_CACHE_HOME", dir_.path().c_str(), 1);
  }

  test::TempDir dir_;
};

TEST_F(GpuPlacementTest, WhereverExpertsAreTheLogitsAreTheSameBits) {
  LoadedModel host = load_model(ember()).value();
  const auto expected = logits_of(host);
  struct Case {
    std::vector<int> devices;
    std::string vram, ram, expert_site;
  };
  const std::string some = vram_with_slots(9), one = vram_with_slots(1);
  const std::vector<Case> cases = {
      {{0}, "200MiB", "", "auto"},  // room for all experts
      {{0}, some, "2MiB", "host"},      {{0}, one, "2MiB", "alternate"},
      {{0, 0}, some, "4MiB", "device"}, {{1, 0, 1}, some, "4MiB", "alternate"},
      {{}, "", "2MiB", "auto"}};
  for (const Case& c : cases) {
    const FakeGpus gpus({kGiB, kGiB / 2});
    ModelFlags flags = on_gpus(c.devices, c.vram, c.expert_site);
    flags.ram = c.ram;
    LoadOptions options;
    options.gpus = &gpus;
    Result<LoadedModel> model = load_model(flags, options);
    ASSERT_TRUE(model.ok()) << model.error().message();
    EXPECT_EQ(logits_of(*model), expected)
        << testing::PrintToString(c.devices) << " " << c.vram << " " << c.expert_site;
    EXPECT_EQ(logits_of(*model), expected) << "once experts have been promoted";
    EXPECT_GT(gpus.pinned_bytes(), 0);
    EXPECT_GT(model->runner->expert_counters().promoted_bytes, 0);
    if (c.vram == one) {
      EXPECT_EQ(gpus.num_slots().at(0), 1);
    } else {
      EXPECT_GT(model->runner->expert_counters().device_hit, 0);
    }
  }
}

TEST_F(GpuPlacementTest, DevicesShareLayersAndHoldExperts) {
  const FakeGpus gpus({kGiB, kGiB});
  LoadOptions options;
  options.gpus = &gpus;
  {
    LoadedModel model = load_model(on_gpus({1, 0}, "128MiB"), options).value();
    EXPECT_THAT(gpus.connected(), ElementsAre(1, 0));
    const Placement& placement = model.engine->placement();
    ASSERT_EQ(placement.backends().size(), 3u);  // and the host, for experts
    EXPECT_EQ(placement.backends().back()->device(), kHost);
    EXPECT_EQ(placement.dense(0).device(), DeviceId{1});
    EXPECT_EQ(placement.dense(placement.num_layers() - 1).device(), DeviceId{2});
    EXPECT_EQ(gpus.num_slots().size(), 2u);
    ASSERT_NE(model.tiers, nullptr);
    EXPECT_EQ(model.tiers->num_devices(), 2);
    logits_of(model);
    EXPECT_GT(gpus.backend(0).num_experts_parts(), 0);
    EXPECT_GT(gpus.backend(1).num_experts_parts(), 0);
    // What a machine's processors take was measured.
    EXPECT_GT(model.tiers->costs().host().expert_us, 0.0);
    EXPECT_GT(model.tiers->costs().device(1).expert_us, 0.0);
    EXPECT_GT(model.tiers->costs().upload_us(0, kMiB), 0.0);
  }
  EXPECT_EQ(gpus.pinned_bytes(), 0);
}

TEST_F(GpuPlacementTest, MemoryThatCannotBePinnedIsUsedAsItIs) {
  LoadedModel host = load_model(ember()).value();
  FakeGpus gpus({kGiB});
  gpus.refuse_pins();
  LoadOptions options;
  options.gpus = &gpus;
  testing::internal::CaptureStderr();
  {
    LoadedModel model = load_model(on_gpus({0}, "60MiB"), options).value();
    EXPECT_EQ(logits_of(model), logits_of(host));
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("cannot be pinned: no memory may be pinned"));
}

TEST_F(GpuPlacementTest, WhatDoesNotFitIsRefusedWithTheNumbers) {
  const FakeGpus gpus({kGiB, kGiB});
  const FakeGpus none({});
  const auto message = [](const ModelFlags& flags, const FakeGpus& machine) {
    LoadOptions options;
    options.gpus = &machine;
    const auto model = load_model(flags, options);
    return model.ok() ? std::string() : model.error().message();
  };
  EXPECT_THAT(message(on_gpus({0}, "10MiB"), gpus),
              testing::AllOf(HasSubstr("device 0 (GPU 0) may take 0.01 GiB; its"),
                             HasSubstr("for 256 tokens of context"), HasSubstr("--vram")));
  EXPECT_THAT(message(on_gpus({0}, "2GiB"), gpus), HasSubstr("has 1.00 GiB free"));
  EXPECT_THAT(message(on_gpus({0, 0}, "600MiB"), gpus), HasSubstr("each of its 2 device(s)"));
  EXPECT_THAT(message(on_gpus({2}, ""), gpus),
              HasSubstr("--devices: there is no GPU 2; this machine has 2"));
  EXPECT_THAT(message(on_gpus(std::vector<int>(17, 0), ""), gpus), HasSubstr("16 are the most"));
  EXPECT_THAT(message(on_gpus({0}, "much"), gpus), HasSubstr("--vram"));
  EXPECT_THAT(message(on_gpus({0}, "0"), gpus), HasSubstr("--vram: \"0\": nothing runs with"));
  EXPECT_THAT(message(on_gpus({0}, "", "moon"), gpus), HasSubstr("--expert-site moon"));
  EXPECT_THAT(message(on_gpus({}, ""), none),
              HasSubstr("no GPU is found: pretended GPUs; --backend cpu needs none"));
  ModelFlags flags = ember();
  flags.devices = {0};
  EXPECT_THAT(message(flags, none), HasSubstr("no GPU is found"));
  // On the CPU none of the flags means anything.
  const auto on_cpu = [] {
    ModelFlags flags = ember();
    flags.backend = "cpu";
    return flags;
  };
  flags = on_cpu();
  flags.devices = {0};
  EXPECT_THAT(message(flags, gpus), HasSubstr("--devices is for --backend cuda"));
  flags = on_cpu();
  flags.vram = "1GiB";
  EXPECT_THAT(message(flags, gpus), HasSubstr("--vram is for --backend cuda"));
  flags = on_cpu();
  flags.expert_site = "host";
  EXPECT_THAT(message(flags, gpus), HasSubstr("--expert-site is for --backend cuda"));
  flags = on_cpu();
  flags.expert_arithmetic = "fast";
  EXPECT_THAT(message(flags, gpus), HasSubstr("--expert-arithmetic is for --backend cuda"));
}

TEST_F(GpuPlacementTest, TheArithmeticOfExpertsReachesEveryDevice) {
  for (const char* const arithmetic : {"defined", "fast"}) {
    const FakeGpus gpus({kGiB, kGiB});
    ModelFlags flags = on_gpus({0, 1}, "");
    flags.expert_arithmetic = arithmetic;
    LoadOptions options;
    options.gpus = &gpus;
    const LoadedModel model = load_model(flags, options).value();
    ASSERT_EQ(gpus.options().size(), 2u);
    for (const auto& [logical, given] : gpus.options()) {
      EXPECT_EQ(given.fast_experts, flags.expert_arithmetic == "fast") << logical;
    }
  }
  ModelFlags flags = on_gpus({0}, "");
  flags.expert_arithmetic = "fast";
  flags.activations = "f32";
  const Status status = check_gpu_flags(flags);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), ErrorCode::kUsage);
  EXPECT_THAT(status.error().message(), HasSubstr("fast is for BF16 activations"));
}

TEST_F(GpuPlacementTest, AutoTakesGpusThatHoldTheModel) {
  const auto num_devices = [](const ModelFlags& flags, const FakeGpus& machine) {
    LoadOptions options;
    options.gpus = &machine;
    const LoadedModel model = load_model(flags, options).value();
    return model.tiers == nullptr ? 0 : model.tiers->num_devices();
  };
  EXPECT_EQ(num_devices(ember(), FakeGpus({kGiB})), 1);
  EXPECT_EQ(num_devices(ember(), FakeGpus({})), 0);
  testing::internal::CaptureStderr();
  EXPECT_EQ(num_devices(ember(), FakeGpus({kGiB / 64})), 0);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("without GPUs, since device 0 (GPU 0) may take"));
}

// What became of it: the number of devices, and what was said.
struct Outcome {
  int num_devices = 0;
  std::string error, notices;
};
Outcome outcome_of(const ModelFlags& flags, const FakeGpus& gpus) {
  LoadOptions options;
  options.gpus = &gpus;
  Outcome outcome;
  testing::internal::CaptureStderr();
  {
    const Result<LoadedModel> model = load_model(flags, options);
    if (!model.ok()) outcome.error = model.error().message();
    if (model.ok() && model->tiers != nullptr) outcome.num_devices = model->tiers->num_devices();
  }
  outcome.notices = testing::internal::GetCapturedStderr();
  return outcome;
}

TEST_F(GpuPlacementTest, AnOldGpuAloneLeavesTheCpu) {
  FakeGpus gpus({kGiB});
  gpus.make_old(0);
  Outcome outcome = outcome_of(ember(), gpus);
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.num_devices, 0);
  EXPECT_THAT(outcome.notices,
              HasSubstr("without GPUs, since GPU 0 cannot be used: pretended has compute "
                        "capability 7.0; the kernels need 8.0 or newer"));
  outcome = outcome_of(on_gpus({}, ""), gpus);  // --backend cuda
  EXPECT_THAT(outcome.error, HasSubstr("GPU 0 cannot be used: pretended has compute capability"));
  EXPECT_THAT(outcome.error, HasSubstr("--backend cpu needs none"));
  EXPECT_THAT(gpus.opened(), testing::IsEmpty());
}

TEST_F(GpuPlacementTest, AnOldOrBrokenGpuBesideANewOneIsLeftOut) {
  FakeGpus gpus({kGiB, kGiB, kGiB});
  gpus.make_old(0);
  gpus.make_broken(1);
  for (const ModelFlags& flags : {ember(), on_gpus({}, "")}) {
    const Outcome outcome = outcome_of(flags, gpus);
    EXPECT_EQ(outcome.error, "");
    EXPECT_EQ(outcome.num_devices, 1);
    EXPECT_THAT(outcome.notices, HasSubstr("GPU 0 cannot be used: pretended has compute"));
    EXPECT_THAT(outcome.notices, HasSubstr("GPU 1 cannot be used: GPU 1 is broken"));
    EXPECT_EQ(gpus.pinned_by(), 2);
  }
}

TEST_F(GpuPlacementTest, AGpuThatIsNamedAndCannotBeUsedIsRefused) {
  FakeGpus gpus({kGiB, kGiB, kGiB});
  gpus.make_old(0);
  gpus.make_broken(1);
  EXPECT_EQ(outcome_of(on_gpus({2, 0}, ""), gpus).error,
            "--devices: GPU 0 cannot be used: pretended has compute capability 7.0; the kernels "
            "need 8.0 or newer; name another one, or take --backend cpu");
  EXPECT_THAT(outcome_of(on_gpus({1}, ""), gpus).error,
              HasSubstr("GPU 1 cannot be used: GPU 1 is broken; name another one"));
}

TEST_F(GpuPlacementTest, ASmallGpuBesideALargeOneIsLeftOut) {
  const FakeGpus gpus({kGiB, kGiB / 64});
  const Outcome outcome = outcome_of(ember(), gpus);
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.num_devices, 1);
  EXPECT_THAT(outcome.notices, HasSubstr("GPU 1 is left out: "));
  EXPECT_THAT(outcome_of(on_gpus({0, 1}, "40MiB"), gpus).error,
              HasSubstr("without a device on GPU 1 it fits: --devices 0"));
}

TEST_F(GpuPlacementTest, OpensNoGpuBesideThoseChosen) {
  const FakeGpus gpus({kGiB, kGiB, kGiB});
  EXPECT_EQ(outcome_of(on_gpus({2}, ""), gpus).num_devices, 1);
  EXPECT_THAT(gpus.opened(), ElementsAre(2));
  EXPECT_EQ(gpus.pinned_by(), 2);
}

TEST_F(GpuPlacementTest, NeedsAddUpToTheModel) {
  const ModelConfig config = ModelConfig::load(ember().model).value();
  const auto source = storage::open_model(ember().model, config, {}).value();
  RunnerOptions options;
  options.context_tokens = 100;
  const DeviceNeed need = device_need(config, *source, {}, options);
  const std::int64_t weights =
      std::accumulate(need.weight_bytes.begin(), need.weight_bytes.end(), need.head_bytes);
  std::int64_t stored = source->dense_bytes();
  if (!config.tie_word_embeddings) {
    stored -= source->category_bytes()[static_cast<int>(TensorCategory::kEmbedding)];
  }
  EXPECT_GE(weights, stored);
  EXPECT_LE(weights, stored + stored / 20 + kMiB);  // the head, 3 MiB, takes two blocks
  const LoadedModel model = load_model(ember()).value();
  const KvPool& pool = model.runner->kv_pool();
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const KvStream stream : {KvStream::kLatent, KvStream::kIndex}) {
      const auto& page_bytes = need.kv_page_bytes[static_cast<std::size_t>(layer)];
      EXPECT_EQ(page_bytes[static_cast<std::size_t>(stream)] * pool.num_pages(),
                static_cast<std::int64_t>(pool.layer(stream, layer).rows.bytes()));
    }
  }
  EXPECT_EQ(need.num_experts.size(), static_cast<std::size_t>(config.num_hidden_layers));
  EXPECT_EQ(need.num_experts.back(), config.n_routed_experts);
}

}  // namespace
}  // namespace stoker::tools
