// The shipped model, packed, run for a while with whatever budget, threads, engine and prompt
// chance brings, stopped in the middle now and then: every answer is the one it gives at rest, the
// counters add up, and nothing is left behind. STOKER_SOAK_SECONDS sets how long (default 30).
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "core/runtime/session.h"
#include "storage/checkpoint.h"
#include "storage/packer.h"
#include "tests/support/temp_dir.h"
#include "tests/support/watchdog.h"
#include "tools/model.h"

namespace stoker::tools {
namespace {

constexpr int kPrompts = 6, kAnswerTokens = 24;
constexpr std::int64_t kSlackBytes = std::int64_t{96} << 20;

std::int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t pages = 0, resident = 0;
  statm >> pages >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

int open_descriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

std::chrono::seconds soak_time() {
  const char* const text = std::getenv("STOKER_SOAK_SECONDS");
  return std::chrono::seconds(text != nullptr ? std::atoi(text) : 30);
}

class SoakTest : public testing::Test {
 protected:
  static constexpr SamplerOptions sampler() { return {.temperature = 0.0f}; }

  void SetUp() override {
    if (!std::filesystem::exists(kModel / "config.json"))
      GTEST_SKIP() << "models/ember is not there";
    // What the usage history would keep between runs stays in the test's own directory.
    ::setenv("XDG_CACHE_HOME", dir_.path().c_str(), 1);
    const ModelConfig config = ModelConfig::load(kModel).value();
    const auto checkpoint = storage::Checkpoint::open(kModel, config).value();
    storage::PackOptions options;
    options.experts = QuantSpec{QuantFormat::kInt4, 64};
    options.num_files = 2;
    ASSERT_TRUE(storage::pack(kModel, *checkpoint, store(), options).ok());
    for (int i = 0; i < kPrompts; ++i) {
      std::vector<TokenId> prompt(static_cast<std::size_t>(3 + 23 * i));
      for (TokenId& token : prompt)
        token = static_cast<TokenId>(random_() % static_cast<unsigned>(config.vocab_size));
      prompts_.push_back(std::move(prompt));
    }
    LoadedModel model = load_model(flags("")).value();
    num_slots_ = model.paging.arena()->num_slots();
    slot_bytes_ = model.paging.arena()->slot_bytes();
    fewest_ = config.num_experts_per_tok;
    for (const auto& prompt : prompts_) {
      Session session(*model.runner, sampler());
      session.submit(prompt);
      std::vector<TokenId>& answer = answers_.emplace_back();
      for (int i = 0; i < kAnswerTokens; ++i) answer.push_back(session.next().value());
    }
  }

  std::filesystem::path store() const { return dir_.path() / "packed"; }

  ModelFlags flags(const std::string& ram) const {
    ModelFlags flags;
    flags.model = store().string();
    flags.ram = ram;
    flags.ctx = 1024;
    flags.prefill_rows = 128;
    return flags;
  }

  ModelFlags random_flags() {
    const int slots = fewest_ + static_cast<int>(random_() % (num_slots_ - fewest_ + 1));
    ModelFlags chosen = flags(std::to_string(slots * slot_bytes_));
    chosen.threads = 1 + static_cast<int>(random_() % 2);
    chosen.io = random_() % 2 == 0 ? "uring" : "pread";
    chosen.direct = random_() % 4 == 0 ? "off" : "auto";
    chosen.prefetch = random_() % 3 == 0 ? "off" : "on";
    return chosen;
  }

  // Answers a prompt, stopped at a moment of chance and taken up again if `interrupted`.
  void answer(Runner& runner, std::size_t which, bool interrupted) {
    Session session(runner, sampler());
    session.submit(prompts_[which]);
    CancelToken cancel;
    std::thread canceller;
    if (interrupted) {
      canceller = std::thread([&cancel, us = random_() % 20000] {
        std::this_thread::sleep_for(std::chrono::microseconds(us));
        cancel.cancel();
      });
    }
    std::vector<TokenId> got;
    while (std::ssize(got) < kAnswerTokens) {
      const Result<TokenId> token = session.next(&cancel);
      if (token.ok()) {
        got.push_back(*token);
        continue;
      }
      ASSERT_EQ(token.error().code(), ErrorCode::kCancelled) << token.error().message();
      cancel.reset();
      ++num_cancelled_;
      if (canceller.joinable()) canceller.join();
    }
    if (canceller.joinable()) canceller.join();
    ASSERT_EQ(got, answers_[which]) << "prompt " << which;
  }

  // Two sessions in every step.
  void answer_together(Runner& runner, std::size_t a, std::size_t b) {
    Session first(runner, sampler()), second(runner, sampler());
    first.submit(prompts_[a]);
    second.submit(prompts_[b]);
    Session* const both[] = {&first, &second};
    const auto count = [&](const Session& session, std::size_t which) {
      return std::ssize(session.tokens()) - std::ssize(prompts_[which]);
    };
    while (count(first, a) < kAnswerTokens || count(second, b) < kAnswerTokens)
      ASSERT_TRUE(runner.step(both).ok());
    for (const auto& [session, which] : {std::pair(&first, a), {&second, b}}) {
      const auto tokens = session->tokens().subspan(prompts_[which].size(), kAnswerTokens);
      ASSERT_EQ(std::vector<TokenId>(tokens.begin(), tokens.end()), answers_[which]);
    }
  }

  void check_counters(const LoadedModel& model) const {
    const LayerCounters total = model.runner->expert_counters();
    EXPECT_EQ(model.experts->bytes_read(), total.demand_bytes + total.prefetch_used_bytes +
                                               total.prefetch_wasted_bytes +
                                               model.experts->prefetched_unused_bytes());
    EXPECT_GE(model.paging.reader()->load().bytes_read, model.experts->bytes_read());
    EXPECT_EQ(total.retried_blocks, 0);
  }

  const std::filesystem::path kModel = STOKER_SOURCE_DIR "/models/ember";
  test::TempDir dir_;
  std::mt19937_64 random_{42};
  std::vector<std::vector<TokenId>> prompts_, answers_;
  int num_slots_ = 0, fewest_ = 0, num_cancelled_ = 0;
  std::int64_t slot_bytes_ = 0;
};

TEST_F(SoakTest, AnyBudgetAnyMomentTheSameAnswers) {
  const auto end = std::chrono::steady_clock::now() + soak_time();
  int rounds = 0, descriptors = 0;
  std::int64_t memory = 0;
  while (std::chrono::steady_clock::now() < end || rounds < 8) {
    const test::Watchdog watchdog(std::chrono::seconds(120));
    {
      const ModelFlags chosen = random_flags();
      SCOPED_TRACE(testing::Message() << "--ram " << chosen.ram << " --io " << chosen.io
                                      << " --direct " << chosen.direct << " --prefetch "
                                      << chosen.prefetch << " --threads " << chosen.threads);
      LoadedModel model = load_model(chosen).value();
      for (int turn = 0; turn < 3 && !HasFatalFailure(); ++turn) {
        const std::size_t which = random_() % kPrompts;
        if (random_() % 4 == 0) {
          answer_together(*model.runner, which, random_() % kPrompts);
        } else {
          answer(*model.runner, which, random_() % 2 == 0);
        }
      }
      check_counters(model);
    }
    if (HasFailure()) return;
    ++rounds;
    // The first rounds warm the allocator up.
    if (rounds == 8) {
      descriptors = open_descriptors();
      memory = resident_bytes();
    } else if (rounds > 8) {
      ASSERT_EQ(open_descriptors(), descriptors) << "round " << rounds;
      ASSERT_LE(resident_bytes(), memory + kSlackBytes) << "round " << rounds;
    }
  }
  std::printf("%d rounds, %d answers interrupted\n", rounds, num_cancelled_);
}

}  // namespace
}  // namespace stoker::tools
