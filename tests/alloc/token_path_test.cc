// After warm-up decoding a token allocates nothing. This program counts every allocation of the
// process, whoever makes it, by standing in front of the C library's allocator; it is its own
// program for that reason.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>

#include "core/runtime/expert_costs.h"
#include "core/runtime/scheduler.h"
#include "core/runtime/session.h"
#include "cpu/factory.h"
#include "tests/support/device_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STOKER_COUNTS_ALLOCATIONS 0  // the sanitizers stand there themselves
#else
#define STOKER_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<long> num_allocations{0};
}  // namespace

#if STOKER_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t align, size_t size);

void* malloc(size_t size) {
  ++num_allocations;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  ++num_allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
  ++num_allocations;
  return __libc_realloc(old, size);
}
void* aligned_alloc(size_t align, size_t size) {
  ++num_allocations;
  return __libc_memalign(align, size);
}
int posix_memalign(void** out, size_t align, size_t size) {
  ++num_allocations;
  *out = __libc_memalign(align, size);
  return *out == nullptr ? ENOMEM : 0;
}
}
#endif

namespace stoker {
namespace {

// Type of activations; slots for routed experts, of 36; whether experts are fetched ahead; the
// cache.
struct Case {
  const char* activations;
  int num_slots;
  bool prefetch;
  KvFormat kv = KvFormat::kBf16;
};
class TokenPathTest : public testing::TestWithParam<Case> {};

TEST_P(TokenPathTest, AllocatesNothingAfterWarmUp) {
  if (STOKER_COUNTS_ALLOCATIONS == 0) GTEST_SKIP() << "a sanitizer owns the allocator";
  Team team(2);
  CpuBackendOptions options;
  options.activations =
      std::string_view(GetParam().activations) == "f32" ? DType::kF32 : DType::kBf16;
  options.kv_format = GetParam().kv;
  options.isa = best_isa();
  options.team = &team;
  test::TinyPaging paging;
  paging.num_slots = GetParam().num_slots;
  paging.prepare_experts = true;
  paging.reader.keeps_log = false;
  paging.manager.prefetch.enabled = GetParam().prefetch;
  paging.manager.prefetch.adaptive = false;
  test::TinyEngine engine(test::tiny_config(), make_cpu_backend(options).value(), test::kTinyRunner,
                          nullptr, paging);
  Session session(engine.runner(), {.temperature = 0.7f, .seed = 3});
  // A prompt, then decode steps: what those allocated. Prefill is left out: oneDNN allocates in
  // every call it executes (about twice per product of 64 rows), which is not ours to change.
  const auto decode_allocations = [&](std::span<const TokenId> prompt) {
    session.submit(prompt);
    EXPECT_TRUE(session.next().ok());
    const long before = num_allocations;
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(session.next().ok());
    return num_allocations - before;
  };
  decode_allocations(test::random_tokens(100, engine.config().vocab_size, 1));
  EXPECT_EQ(decode_allocations(test::random_tokens(100, engine.config().vocab_size, 2)), 0);
}

// Takes all parts of a demand and checks them, but computes none.
void take_all(ExpertProvider& experts, int layer, std::span<const ExpertUse> uses) {
  Result<ExpertSetPtr> set = experts.demand(layer, uses);
  ASSERT_TRUE(set.ok());
  ExpertPart parts[16];
  while (!(*set)->exhausted()) {
    const std::size_t ready = (*set)->take_ready(parts);
    for (const ExpertPart& part : std::span(parts, ready)) (void)part.passes_guard();
    if (ready > 0) continue;
    ASSERT_TRUE((*set)->status().ok());
    if ((*set)->waits_for_slots()) {
      (*set)->retire_taken();
    } else {
      experts.wait(std::chrono::milliseconds(1));
    }
  }
}

// Experts come and go in RAM and on two devices, and are promoted.
TEST(TieredExpertsAllocations, AreNoneAfterWarmUp) {
  if (STOKER_COUNTS_ALLOCATIONS == 0) GTEST_SKIP() << "a sanitizer owns the allocator";
  Team team(1);
  const auto host = [&] { return make_cpu_backend({.isa = best_isa(), .team = &team}).value(); };
  EngineBackends backends;
  for (const int device : {1, 2}) {
    backends.backends.push_back(std::make_unique<test::DeviceBackend>(host(), DeviceId{device}));
  }
  backends.backends.push_back(host());
  backends.dense = {0, 0, 1, 1};
  test::TinyPaging paging;
  paging.num_slots = 13;
  paging.prepare_experts = true;
  paging.reader.keeps_log = false;
  paging.tiers = test::TinyTiers{.num_slots = 5};
  test::TinyEngine engine(test::tiny_config(), std::move(backends), test::kTinyRunner, nullptr,
                          paging);
  ExpertProvider& experts = engine.runner().experts();
  const std::int32_t row = 0;
  const float weight = 1.0f;
  const auto decode = [&](int num_steps, int first_expert) {
    for (int step = 0; step < num_steps; ++step) {
      experts.begin_step({});
      for (const int layer : {1, 2, 3}) {
        ExpertUse uses[2];
        for (int i = 0; i < 2; ++i) {
          uses[i].expert = first_expert + 5 * i;
          uses[i].rows = {&row, 1};
          uses[i].weights = {&weight, 1};
          uses[i].slot_begin = i;
          uses[i].num_decode_rows = 1;
        }
        take_all(experts, layer, uses);
      }
    }
  };
  for (const int first_expert : {0, 1, 2}) decode(20, first_expert);
  decode(100, 3);  // hotter than what the devices hold
  const std::int64_t promoted = engine.runner().expert_counters().promoted_bytes;
  const long before = num_allocations;
  decode(400, 4);
  EXPECT_EQ(num_allocations, before);
  EXPECT_GT(engine.runner().expert_counters().promoted_bytes, promoted);
}

TEST(SchedulerAllocations, AreNoneAfterConstruction) {
  if (STOKER_COUNTS_ALLOCATIONS == 0) GTEST_SKIP() << "a sanitizer owns the allocator";
  for (const int num_experts : {8, 128}) {
    Scheduler scheduler(num_experts);
    const DeviceCosts device_costs[2] = {{{30, 2}, 4e-5}, {{20, 1}, 5e-5}};
    ExpertCosts costs({200, 20}, device_costs);
    std::vector<ScheduledExpert> experts(num_experts);
    for (int i = 0; i < num_experts; ++i) experts[i] = {1 + i % 5, i % 3 * 100.0, i % 7 == 0};
    std::vector<ExpertSite> sites(num_experts);
    const long before = num_allocations;
    costs.observe_host(3, 3, 700);
    costs.observe_device(0, 3, 3, 70);
    costs.observe_upload(1, 20'000'000, 700);
    ScheduledDevice devices[2];
    for (int d = 0; d < 2; ++d) {
      devices[d] = {0, 0, num_experts, costs.device(d), costs.upload_us(d, 10'000'000)};
    }
    EXPECT_GT(scheduler.assign(experts, {true, 0, costs.host()}, devices, sites), 0);
    EXPECT_EQ(num_allocations, before);
  }
}

TEST(AllocationCounter, SeesAllocations) {
  if (STOKER_COUNTS_ALLOCATIONS == 0) GTEST_SKIP() << "a sanitizer owns the allocator";
  const long before = num_allocations;
  void* volatile some = std::malloc(100);  // volatile: the compiler may not leave it out
  std::free(some);
  EXPECT_GT(num_allocations, before);
}

INSTANTIATE_TEST_SUITE_P(Activations, TokenPathTest,
                         testing::Values(Case{"bf16", 36, false}, Case{"f32", 36, true},
                                         Case{"bf16", 13, false}, Case{"bf16", 13, true},
                                         Case{"f32", 4, true},
                                         Case{"bf16", 36, true, KvFormat::kFp8}),
                         [](const auto& info) {
                           return std::string(info.param.activations) + "_" +
                                  std::to_string(info.param.num_slots) +
                                  (info.param.prefetch ? "_prefetch" : "") +
                                  (info.param.kv == KvFormat::kFp8 ? "_fp8_cache" : "");
                         });

}  // namespace
}  // namespace stoker
