#include "tools/trace_hooks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "cpu/reference_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_engine.h"
#include "tools/trace_generator.h"

namespace stoker::tools {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

// Passes everything through and keeps what it is told of later layers.
class HintedExperts final : public ExpertProvider {
 public:
  using Hints = std::map<std::pair<int, int>, std::vector<std::int32_t>>;  // by layer, lead

  HintedExperts(std::unique_ptr<ExpertProvider> inner, Hints& hints)
      : inner_(std::move(inner)), hints_(hints) {}
  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override {
    return inner_->demand(layer, uses);
  }
  int num_ranked_guesses() const override { return 5; }
  void hint(const LookAhead& guesses) override {
    hints_[{guesses.layer, guesses.lead}] = {guesses.experts.begin(), guesses.experts.end()};
  }
  void wait(std::chrono::microseconds timeout) override { inner_->wait(timeout); }

 private:
  std::unique_ptr<ExpertProvider> inner_;
  Hints& hints_;
};

class TraceHooks : public ::testing::Test {
 protected:
  test::TinyEngine engine_{test::tiny_config(), std::make_unique<ReferenceBackend>(),
                           test::kTinyRunner, [this](std::unique_ptr<ExpertProvider> inner) {
                             return std::make_unique<HintedExperts>(std::move(inner), hints_);
                           }};
  KvSequence kv_ = engine_.sequence();
  HintedExperts::Hints hints_;

  std::vector<std::vector<float>> feed(std::span<const TokenId> tokens, Purpose purpose,
                                       StepHooks& hooks) {
    const Segment segment{&kv_, 0, static_cast<int>(tokens.size()), purpose, Logits::kAll};
    const ForwardPtr pass = engine_.runner().run({tokens, {&segment, 1}, &hooks}).value();
    return test::TinyEngine::rows_of(*pass);
  }
};

TEST_F(TraceHooks, ARecordedRunForcedGivesTheSameBits) {
  const std::vector<TokenId> tokens = test::random_tokens(20, 96, 3);
  TraceRecorder recorder(engine_.config(), "tiny", {.weights = true});
  std::vector<std::vector<float>> logits =
      feed(std::span(tokens).first(17), Purpose::kPrefill, recorder);
  for (int i = 17; i < 20; ++i) {
    const auto row = feed(std::span(tokens).subspan(i, 1), Purpose::kDecode, recorder);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const RoutingTrace trace = recorder.trace();
  ASSERT_EQ(trace.num_tokens(), 20);
  EXPECT_TRUE(check_trace(trace, engine_.config()).ok());
  EXPECT_EQ(trace.step, (std::vector<std::int32_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                   0, 0, 0, 0, 0, 0, 0, 1, 2, 3}));
  EXPECT_EQ(trace.purpose[16], Purpose::kPrefill);
  EXPECT_EQ(trace.purpose[17], Purpose::kDecode);
  EXPECT_EQ(trace.num_ranked, 12);  // no more experts than there are
  for (int token = 0; token < 20; ++token) {
    // 8 of the 12 experts lie in the groups that a token may choose from.
    for (int place = 0; place < 3; ++place) {
      EXPECT_NE(trace.guessed(1, token, place)[7], kNoGuess);
      EXPECT_EQ(trace.guessed(1, token, place)[8], kNoGuess);
    }
    EXPECT_THAT(trace.guessed(2, token, 0), Each(kNoGuess));
    EXPECT_NE(trace.guessed(2, token, 1)[0], kNoGuess);
    EXPECT_NE(trace.guessed(2, token, 2)[0], kNoGuess);
  }

  // Through the file, and with steps cut differently.
  const test::TempDir dir;
  ASSERT_TRUE(recorder.write(dir.path() / "t").ok());
  TraceForcer forcer(read_routing_trace(dir.path() / "t").value());
  KvSequence fresh = engine_.sequence();
  kv_ = std::move(fresh);
  const auto first = feed(std::span(tokens).first(17), Purpose::kPrefill, forcer);
  const auto rest = feed(std::span(tokens).subspan(17), Purpose::kDecode, forcer);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(i < 17 ? first[i] : rest[i - 17], logits[i]) << i;
}

TEST_F(TraceHooks, AForcedRunTakesExpertsAndGuessesInOrderAndStartsAgain) {
  GeneratedTrace wanted;
  wanted.num_tokens = 7;
  wanted.num_ranked = 4;
  TraceForcer forcer(generate_trace(engine_.config(), wanted).value());
  // Records what the forced run did.
  class Both final : public StepHooks {
   public:
    Both(TraceForcer& forcer, TraceRecorder& recorder) : forcer_(forcer), recorder_(recorder) {}
    void on_begin(const StepBatch& batch) override {
      forcer_.on_begin(batch);
      recorder_.on_begin(batch);
    }
    void on_end() override {
      forcer_.on_end();
      recorder_.on_end();
    }
    std::span<const std::int32_t> forced_experts(int layer) override {
      return forcer_.forced_experts(layer);
    }
    LookAhead forced_look_ahead(int layer, int lead) override {
      return forcer_.forced_look_ahead(layer, lead);
    }
    void on_routes(int layer, const RouteMailbox& routes) override {
      recorder_.on_routes(layer, routes);
    }

   private:
    TraceForcer& forcer_;
    TraceRecorder& recorder_;
  };
  TraceRecorder recorder(engine_.config(), "tiny");
  Both hooks(forcer, recorder);
  const std::vector<TokenId> tokens = test::random_tokens(10, 96, 4);
  feed(std::span(tokens).first(6), Purpose::kPrefill, hooks);
  feed(std::span(tokens).subspan(6, 3), Purpose::kDecode, hooks);  // tokens 6, 0, 1 of the trace
  const RoutingTrace& trace = forcer.trace();
  const auto guesses_of = [&](int lead, int place, const std::vector<int>& rows) {
    std::vector<std::int32_t> all;
    for (const int row : rows) {
      const auto guessed = trace.guessed(lead, row, place);
      all.insert(all.end(), guessed.begin(), guessed.end());
    }
    return all;
  };
  EXPECT_EQ((hints_[{1, 1}]), guesses_of(1, 0, {6, 0, 1}));
  EXPECT_EQ((hints_[{2, 1}]), guesses_of(1, 1, {6, 0, 1}));
  EXPECT_EQ((hints_[{3, 2}]), guesses_of(2, 2, {6, 0, 1}));
  feed(std::span(tokens).subspan(9, 1), Purpose::kDecode, hooks);
  EXPECT_EQ((hints_[{2, 1}]), guesses_of(1, 1, {2}));
  const RoutingTrace ran = recorder.trace();
  for (int row = 0; row < 10; ++row) {
    for (int place = 0; place < 3; ++place) {
      EXPECT_TRUE(std::ranges::equal(ran.chosen(row, place), trace.chosen(row % 7, place)))
          << row << " " << place;
    }
  }
}

TEST_F(TraceHooks, AFailedStepLeavesNothingAndUsesNothingUp) {
  GeneratedTrace wanted;
  wanted.num_tokens = 9;
  TraceForcer forcer(generate_trace(engine_.config(), wanted).value());
  TraceRecorder recorder(engine_.config(), "tiny");
  const std::vector<TokenId> tokens = test::random_tokens(2, 96, 4);
  CancelToken cancel;
  cancel.cancel();
  const Segment segment{&kv_, 0, 2, Purpose::kDecode, Logits::kAll};
  for (StepHooks* hooks : {static_cast<StepHooks*>(&forcer), static_cast<StepHooks*>(&recorder)}) {
    EXPECT_FALSE(engine_.runner().run({tokens, {&segment, 1}, hooks, &cancel}).ok());
  }
  EXPECT_EQ(recorder.num_tokens(), 0);
  const test::TempDir dir;
  EXPECT_THAT(recorder.write(dir.path() / "t").error().message(), HasSubstr("no token ran"));
  feed(tokens, Purpose::kDecode, recorder);
  EXPECT_EQ(recorder.trace().step, (std::vector<std::int32_t>{0, 0}));
  feed(tokens, Purpose::kDecode, forcer);
  EXPECT_EQ(std::vector<std::int32_t>(hints_[{2, 1}].begin(), hints_[{2, 1}].begin() + 6),
            std::vector<std::int32_t>(forcer.trace().guessed(1, 0, 1).begin(),
                                      forcer.trace().guessed(1, 0, 1).end()));
}

TEST_F(TraceHooks, TheRecorderStopsAtItsBound) {
  TraceRecorder probe(engine_.config(), "tiny");
  const std::vector<TokenId> tokens = test::random_tokens(3, 96, 4);
  feed(tokens, Purpose::kDecode, probe);
  TraceRecorder recorder(engine_.config(), "tiny",
                         {.max_bytes = 7 * probe.trace().bytes_per_token()});
  for (int i = 0; i < 4; ++i) feed(tokens, Purpose::kDecode, recorder);
  EXPECT_EQ(recorder.num_tokens(), 6);
  EXPECT_EQ(recorder.num_dropped(), 6);
  EXPECT_EQ(recorder.trace().num_tokens(), 6);
}

}  // namespace
}  // namespace stoker::tools
