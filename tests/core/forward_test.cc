// The call shapes of the forward pass, held without a GPU: late events, ragged batches, rewind,
// fork, a prefill with another session's decode between its layers, and steps that fail.
#include "core/runtime/forward.h"

#include <gtest/gtest.h>

#include "cpu/factory.h"
#include "cpu/reference_backend.h"
#include "tests/support/late_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::LateBackend;
using test::random_tokens;
using test::TinyEngine;
using Rows = std::vector<std::vector<float>>;

constexpr int kTokens = 40;  // more than index_topk: DSA selects

// Yields one part at a time, with polls that find nothing in between.
class DrippingExperts final : public ExpertProvider {
 public:
  explicit DrippingExperts(std::unique_ptr<ExpertProvider> inner)
      : inner_(std::move(inner)), set_(*this) {}

  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override {
    ASSIGN_OR_RETURN(set_.inner, inner_->demand(layer, uses));
    return ExpertSetPtr(&set_);
  }
  void hint(const LookAhead& /*guesses*/) override {}
  void wait(std::chrono::microseconds /*timeout*/) override {}
  bool fail = false;

 private:
  struct Set final : public ExpertSet {
    explicit Set(DrippingExperts& owner) : owner(owner) {}
    std::size_t take_ready(std::span<ExpertPart> out) override {
      if (owner.fail || ++polls % 3 != 0) return 0;
      return inner->take_ready(out.first(1));
    }
    bool exhausted() const override { return inner->exhausted(); }
    Status status() const override {
      return owner.fail ? Status(Error(ErrorCode::kCorrupt, "a block is bad")) : Status();
    }
    void release() override { inner.reset(); }

    DrippingExperts& owner;
    ExpertSetPtr inner;
    int polls = 0;
  };

  std::unique_ptr<ExpertProvider> inner_;
  Set set_;
};

Rows run_alone(TinyEngine& engine, std::span<const TokenId> tokens) {
  KvSequence kv = engine.sequence();
  return engine.feed(kv, tokens, Purpose::kPrefill, Logits::kAll);
}

// A model type, and what it runs on: the reference, or the CPU backend with an FP8 cache.
struct Case {
  const char* model;
  bool fp8_cache;
};

class ForwardTest : public testing::TestWithParam<Case> {
 protected:
  std::string config() const { return test::tiny_config(GetParam().model); }
  std::unique_ptr<Backend> backend() {
    if (!GetParam().fp8_cache) return std::make_unique<ReferenceBackend>();
    CpuBackendOptions options;
    options.kv_format = KvFormat::kFp8;
    options.isa = best_isa();
    options.team = &team_;
    return make_cpu_backend(options).value();
  }

 private:
  Team team_{2};
};

TEST_P(ForwardTest, LateEventsChangeNothing) {
  TinyEngine at_once(config(), backend());
  const std::vector<TokenId> tokens = random_tokens(kTokens, at_once.config().vocab_size, 1);
  auto late = std::make_unique<LateBackend>(backend(), 3);
  const LateBackend& backend = *late;
  TinyEngine engine(config(), std::move(late));
  EXPECT_EQ(run_alone(engine, tokens), run_alone(at_once, tokens));
  EXPECT_GT(backend.num_polls(), 20);
}

// What hooks force goes by way of memory of the host's, which the next layer uses again.
TEST_P(ForwardTest, ForcedSelectionsMayBeReadLate) {
  struct Forcing final : StepHooks {
    std::span<const std::int32_t> forced_selection(int layer, int /*row*/) override {
      static constexpr std::int32_t kPositions[] = {0, 3, 5, 7};
      return std::span(kPositions).first(static_cast<std::size_t>(layer % 4 + 1));
    }
  } hooks;
  // No router's choice is waited for between the first layers.
  const std::string config = test::with_field(this->config(), "first_k_dense_replace", "3");
  const auto run = [&](std::unique_ptr<Backend> on) {
    TinyEngine engine(config, std::move(on));
    const std::vector<TokenId> tokens = random_tokens(13, engine.config().vocab_size, 14);
    KvSequence kv = engine.sequence();
    engine.feed(kv, std::span(tokens).first(12), Purpose::kPrefill, Logits::kNone);
    const Segment segment{&kv, 0, 1, Purpose::kDecode, Logits::kLast};
    const ForwardPtr forward =
        engine.runner().run({std::span(tokens).last(1), {&segment, 1}, &hooks}).value();
    return TinyEngine::rows_of(*forward);
  };
  EXPECT_EQ(run(std::make_unique<LateBackend>(backend(), 1)), run(backend()));
}

TEST_P(ForwardTest, PartsMayComeOneByOne) {
  TinyEngine resident(config(), backend());
  TinyEngine dripping(config(), backend(), test::kTinyRunner,
                      [](std::unique_ptr<ExpertProvider> inner) {
                        return std::make_unique<DrippingExperts>(std::move(inner));
                      });
  const std::vector<TokenId> tokens = random_tokens(kTokens, resident.config().vocab_size, 2);
  EXPECT_EQ(run_alone(dripping, tokens), run_alone(resident, tokens));
}

TEST_P(ForwardTest, ARaggedBatchEqualsEachSessionAlone) {
  TinyEngine engine(config(), backend());
  const std::vector<TokenId> a = random_tokens(kTokens, engine.config().vocab_size, 3);
  const std::vector<TokenId> b = random_tokens(23, engine.config().vocab_size, 4);
  KvSequence alone = engine.sequence();
  engine.feed(alone, std::span(a).first(30), Purpose::kPrefill, Logits::kNone);
  const Rows decode_alone =
      engine.feed(alone, std::span(a).subspan(30, 1), Purpose::kDecode, Logits::kLast);
  const Rows prefill_alone = run_alone(engine, b);

  KvSequence kv_a = engine.sequence(), kv_b = engine.sequence();
  engine.feed(kv_a, std::span(a).first(30), Purpose::kPrefill, Logits::kNone);
  std::vector<TokenId> both = {a[30]};
  both.insert(both.end(), b.begin(), b.end());
  const Segment segments[] = {
      {&kv_a, 0, 1, Purpose::kDecode, Logits::kLast},
      {&kv_b, 1, static_cast<int>(b.size()), Purpose::kPrefill, Logits::kAll}};
  const ForwardPtr forward = engine.runner().run({both, segments}).value();
  Rows together = TinyEngine::rows_of(*forward);
  EXPECT_EQ(together.front(), decode_alone.front());
  together.erase(together.begin());
  EXPECT_EQ(together, prefill_alone);
  EXPECT_EQ(kv_a.length(), 31);
  EXPECT_EQ(kv_b.length(), 23);
}

TEST_P(ForwardTest, RewindAndReplayGiveTheSame) {
  TinyEngine engine(config(), backend());
  const std::vector<TokenId> tokens = random_tokens(kTokens, engine.config().vocab_size, 5);
  const std::vector<TokenId> other = random_tokens(20, engine.config().vocab_size, 6);
  KvSequence kv = engine.sequence();
  const Rows first = engine.feed(kv, tokens, Purpose::kPrefill, Logits::kAll);
  kv.rewind(15);
  engine.feed(kv, other, Purpose::kPrefill, Logits::kNone);
  kv.rewind(15);
  const Rows replay =
      engine.feed(kv, std::span(tokens).subspan(15), Purpose::kPrefill, Logits::kAll);
  EXPECT_EQ(replay, Rows(first.begin() + 15, first.end()));
}

TEST_P(ForwardTest, ForksShareThePastAndPartWays) {
  TinyEngine engine(config(), backend());
  const int vocab = engine.config().vocab_size;
  std::vector<TokenId> past = random_tokens(70, vocab, 7);  // a full page and a part of one
  const std::vector<TokenId> a = random_tokens(10, vocab, 8), b = random_tokens(10, vocab, 9);
  KvSequence one = engine.sequence();
  engine.feed(one, past, Purpose::kPrefill, Logits::kNone);
  const int used =
      engine.runner().kv_pool().num_pages() - engine.runner().kv_pool().num_free(KvStream::kLatent);
  KvSequence two = one.fork();
  EXPECT_EQ(
      engine.runner().kv_pool().num_pages() - engine.runner().kv_pool().num_free(KvStream::kLatent),
      used);
  const Rows rows_a = engine.feed(one, a, Purpose::kPrefill, Logits::kAll);
  const Rows rows_b = engine.feed(two, b, Purpose::kPrefill, Logits::kAll);
  for (const auto& [tail, rows] : {std::pair(a, rows_a), std::pair(b, rows_b)}) {
    std::vector<TokenId> whole = past;
    whole.insert(whole.end(), tail.begin(), tail.end());
    const Rows alone = run_alone(engine, whole);
    EXPECT_EQ(rows, Rows(alone.begin() + 70, alone.end()));
  }
}

TEST_P(ForwardTest, DecodeOfOneSessionRunsBetweenTheLayersOfAnothersPrefill) {
  TinyEngine engine(config(), std::make_unique<LateBackend>(backend(), 5));
  const int vocab = engine.config().vocab_size;
  const std::vector<TokenId> prompt = random_tokens(kTokens, vocab, 10),
                             other = random_tokens(12, vocab, 11);
  const Rows prefill_alone = run_alone(engine, prompt);
  KvSequence alone = engine.sequence();
  engine.feed(alone, std::span(other).first(6), Purpose::kPrefill, Logits::kNone);
  Rows decode_alone;
  for (int i = 6; i < 10; ++i) {
    decode_alone.push_back(
        engine.feed(alone, std::span(other).subspan(i, 1), Purpose::kDecode, Logits::kLast)
            .front());
  }

  KvSequence kv = engine.sequence(), kv_other = engine.sequence();
  engine.feed(kv_other, std::span(other).first(6), Purpose::kPrefill, Logits::kNone);
  const Segment segment{&kv, 0, kTokens, Purpose::kPrefill, Logits::kAll};
  const ForwardPtr prefill = engine.runner().begin({prompt, {&segment, 1}}).value();
  Rows decoded;
  for (int i = 6; !prefill->done(); ++i) {
    ASSERT_TRUE(prefill->run_layer(engine.runner()).ok());
    if (i < 10) {
      decoded.push_back(
          engine.feed(kv_other, std::span(other).subspan(i, 1), Purpose::kDecode, Logits::kLast)
              .front());
    }
  }
  EXPECT_EQ(decoded, decode_alone);
  EXPECT_EQ(TinyEngine::rows_of(*prefill), prefill_alone);
}

// Given up after any layer: its experts are given back, and the next pass is as any other.
TEST_P(ForwardTest, APassMayBeGivenUp) {
  TinyEngine engine(config(), std::make_unique<LateBackend>(backend(), 2));
  const std::vector<TokenId> tokens = random_tokens(9, engine.config().vocab_size, 13);
  const Rows expected = run_alone(engine, tokens);
  const int num_layers = engine.runner().engine().num_layers();
  for (int layers = 0; layers < num_layers; ++layers) {
    KvSequence kv = engine.sequence();
    const Segment segment{&kv, 0, static_cast<int>(tokens.size()), Purpose::kPrefill, Logits::kAll};
    {
      const ForwardPtr forward = engine.runner().begin({tokens, {&segment, 1}}).value();
      for (int i = 0; i < layers; ++i) ASSERT_TRUE(forward->run_layer(engine.runner()).ok());
      ASSERT_FALSE(forward->done());
    }
    EXPECT_EQ(kv.length(), 0);
    EXPECT_EQ(run_alone(engine, tokens), expected) << "after " << layers << " layers";
  }
}

TEST_P(ForwardTest, ChunksDoNotChangeABit) {
  TinyEngine engine(config(), backend());
  const std::vector<TokenId> tokens = random_tokens(kTokens, engine.config().vocab_size, 12);
  const Rows whole = run_alone(engine, tokens);
  for (const int chunk : {1, 7, 16}) {
    KvSequence kv = engine.sequence();
    Rows rows;
    for (int begin = 0; begin < kTokens; begin += chunk) {
      const auto piece = std::span(tokens).subspan(begin, std::min(chunk, kTokens - begin));
      for (auto& row : engine.feed(kv, piece, Purpose::kPrefill, Logits::kAll))
        rows.push_back(std::move(row));
    }
    EXPECT_EQ(rows, whole) << "chunks of " << chunk;
  }
}

TEST_P(ForwardTest, AFailedStepLeavesItsSessionAsItWas) {
  auto late = std::make_unique<LateBackend>(backend(), 5);
  LateBackend& backend = *late;
  TinyEngine engine(config(), std::move(late));
  const std::vector<TokenId> tokens = random_tokens(kTokens, engine.config().vocab_size, 13);
  const Rows expected = run_alone(engine, tokens);
  KvSequence kv = engine.sequence();
  engine.feed(kv, std::span(tokens).first(10), Purpose::kPrefill, Logits::kNone);
  const int free = engine.runner().kv_pool().num_free(KvStream::kLatent);
  const Segment segment{&kv, 0, kTokens - 10, Purpose::kPrefill, Logits::kAll};
  const StepBatch batch{std::span(tokens).subspan(10), {&segment, 1}};
  for (const int operation : {0, 5, 30, 60}) {
    backend.fail_at(operation);
    const auto failed = engine.runner().run(batch);
    ASSERT_FALSE(failed.ok()) << operation;
    EXPECT_NE(failed.error().message().find("the device was lost"), std::string::npos);
    EXPECT_EQ(kv.length(), 10);
    EXPECT_EQ(engine.runner().kv_pool().num_free(KvStream::kLatent), free);
  }
  backend.fail_at(-1);
  const ForwardPtr forward = engine.runner().run(batch).value();
  EXPECT_EQ(TinyEngine::rows_of(*forward), Rows(expected.begin() + 10, expected.end()));
}

TEST_P(ForwardTest, AnUnreadableExpertEndsTheStepOnly) {
  DrippingExperts* provider = nullptr;
  TinyEngine engine(config(), backend(), test::kTinyRunner,
                    [&](std::unique_ptr<ExpertProvider> inner) {
                      auto dripping = std::make_unique<DrippingExperts>(std::move(inner));
                      provider = dripping.get();
                      return dripping;
                    });
  const std::vector<TokenId> tokens = random_tokens(8, engine.config().vocab_size, 14);
  const Rows expected = run_alone(engine, tokens);
  KvSequence kv = engine.sequence();
  const Segment segment{&kv, 0, 8, Purpose::kPrefill, Logits::kAll};
  provider->fail = true;
  const auto failed = engine.runner().run({tokens, {&segment, 1}});
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message(), "layer 1: a block is bad");
  provider->fail = false;
  EXPECT_EQ(engine.feed(kv, tokens, Purpose::kPrefill, Logits::kAll), expected);
}

TEST_P(ForwardTest, CancellingStopsAStep) {
  TinyEngine engine(config(), std::make_unique<LateBackend>(backend(), 5));
  const std::vector<TokenId> tokens = random_tokens(8, engine.config().vocab_size, 15);
  KvSequence kv = engine.sequence();
  const Segment segment{&kv, 0, 8, Purpose::kPrefill, Logits::kLast};
  CancelToken cancel;
  cancel.cancel();
  const auto stopped = engine.runner().run({tokens, {&segment, 1}, nullptr, &cancel});
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().code(), ErrorCode::kCancelled);
  EXPECT_EQ(kv.length(), 0);
}

TEST_P(ForwardTest, BadTokensAndFullContextsAreRefused) {
  RunnerOptions options = test::kTinyRunner;
  options.context_tokens = 64;
  TinyEngine engine(config(), backend(), options);
  KvSequence kv = engine.sequence();
  const std::vector<TokenId> bad = {1, engine.config().vocab_size};
  Segment segment{&kv, 0, 2, Purpose::kPrefill, Logits::kLast};
  const auto refused = engine.runner().begin({bad, {&segment, 1}});
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message().find("outside the vocabulary"), std::string::npos);
  const std::vector<TokenId> many = random_tokens(65, engine.config().vocab_size, 16);
  segment.num_rows = 65;
  const auto full = engine.runner().begin({many, {&segment, 1}});
  ASSERT_FALSE(full.ok());
  EXPECT_NE(full.error().message().find("--ctx"), std::string::npos);
  EXPECT_EQ(kv.length(), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, ForwardTest,
                         testing::Values(Case{"deepseek_v32", false}, Case{"deepseek_v3", false},
                                         Case{"deepseek_v32", true}, Case{"deepseek_v3", true}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return std::string(c.model) + (c.fp8_cache ? "_fp8_cache" : "");
                         });

}  // namespace
}  // namespace stoker
