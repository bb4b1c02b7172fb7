// What a pass enqueues in a part is the same from step to step, whatever changes around it: a
// backend that runs what it kept instead gives the same bits.
#include <gtest/gtest.h>

#include "core/runtime/runner.h"
#include "cpu/factory.h"
#include "cpu/reference_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/replay_backend.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::PartCounts;
using test::random_tokens;
using test::ReplayBackend;
using test::TinyEngine;
using test::TinyPaging;
using Rows = std::vector<std::vector<float>>;

// Of a tiny model: one layer without experts, and three with some.
constexpr int kPartsPerStep = 1 + 3;

// An engine that replays parts and one that knows of none, for the same steps.
class PartsTest : public testing::TestWithParam<const char*> {
 protected:
  static TinyPaging all_experts_resident() {
    TinyPaging paging;
    paging.manager.prefetch.enabled = false;  // nobody looks ahead
    return paging;
  }
  explicit PartsTest(const TinyPaging& paging = all_experts_resident())
      : replaying(test::tiny_config(GetParam()),
                  std::make_unique<ReplayBackend>(std::make_unique<ReferenceBackend>(), counts),
                  test::kTinyRunner, nullptr, paging),
        plain(test::tiny_config(GetParam()), std::make_unique<ReferenceBackend>(),
              test::kTinyRunner, nullptr, paging) {}

  struct Row {
    int sequence;
    TokenId token;
  };
  void start(int num_sequences, int prompt_length) {
    for (int i = 0; i < num_sequences; ++i) {
      const auto prompt = random_tokens(prompt_length + i, plain.config().vocab_size, 20);
      for (int which : {0, 1}) {
        sequences[which].push_back(engine(which).sequence());
        engine(which).feed(sequences[which].back(), prompt, Purpose::kPrefill, Logits::kNone);
      }
    }
  }
  // Decodes a token of each of some sequences, with both engines.
  void decode(const std::vector<Row>& rows, StepHooks* hooks = nullptr) {
    Rows logits[2];
    for (int which : {0, 1}) {
      std::vector<Segment> segments;
      std::vector<TokenId> tokens;
      for (const Row& row : rows) {
        segments.push_back({&sequences[which][static_cast<std::size_t>(row.sequence)],
                            static_cast<int>(tokens.size()), 1, Purpose::kDecode, Logits::kLast});
        tokens.push_back(row.token);
      }
      const auto forward = engine(which).runner().run({tokens, segments, hooks});
      ASSERT_TRUE(forward.ok()) << forward.error().message();
      logits[which] = TinyEngine::rows_of(**forward);
    }
    ASSERT_EQ(logits[0], logits[1]);
  }
  TinyEngine& engine(int which) { return which == 0 ? replaying : plain; }

  PartCounts counts;
  TinyEngine replaying, plain;
  std::vector<KvSequence> sequences[2];
};

TEST_P(PartsTest, AreTheSameForEveryTokenOfASequence) {
  start(1, 3);
  EXPECT_EQ(counts.num_first, 0) << "parts of a prompt";
  constexpr int kSteps = 90;  // over pages, and over index_topk positions
  for (int i = 0; i < kSteps; ++i) decode({{0, i % 96}});
  EXPECT_EQ(counts.num_first, kPartsPerStep);
  EXPECT_EQ(counts.num_replayed, kPartsPerStep * (kSteps - 1));
  EXPECT_GT(counts.num_calls_replayed, 100 * kSteps / 2);
}

TEST_P(PartsTest, AreTheSameForWhicheverSequences) {
  start(4, 5);
  for (int i = 0; i < 40; ++i) {
    std::vector<Row> rows;
    for (int s = 0; s < 4; ++s) {
      if (i % (s + 2) != 0) rows.push_back({(s + i) % 4, (7 * i + s) % 96});
    }
    if (!rows.empty()) decode(rows);
    if (i == 20) {
      for (int which : {0, 1}) {
        sequences[which][1].rewind(3);
        sequences[which][2] = sequences[which][0].fork();
      }
    }
  }
  EXPECT_LE(counts.num_first, 4 * kPartsPerStep);  // for each number of rows
  EXPECT_GT(counts.num_replayed, 20 * kPartsPerStep);
}

TEST_P(PartsTest, HaveWhatIsForcedByWayOfHostMemory) {
  struct Forced final : StepHooks {
    std::span<const std::int32_t> forced_experts(int layer) override {
      if (!forces) return {};
      experts = {(layer + step) % 4, 4 + step % 4, 8 + layer % 4};
      return experts;
    }
    std::vector<std::int32_t> experts;
    int step = 0;
    bool forces = true;
  } hooks;
  start(1, 5);
  for (hooks.step = 0; hooks.step < 12; ++hooks.step) decode({{0, 11}}, &hooks);
  EXPECT_EQ(counts.num_first, kPartsPerStep);
  hooks.forces = false;  // other calls up to the router
  decode({{0, 12}}, &hooks);
  EXPECT_EQ(counts.num_first, kPartsPerStep + 3);
  decode({{0, 13}});
  EXPECT_EQ(counts.num_first, kPartsPerStep + 3);
}

TEST_P(PartsTest, AreNotOpenWhereHooksSelect) {
  struct Selecting final : StepHooks {
    bool wants_selection(int layer) override { return layer == 1; }
    std::span<const std::int32_t> forced_selection(int layer, int /*row*/) override {
      static constexpr std::int32_t kFirstTwo[] = {0, 1};
      return layer == 2 ? std::span(kFirstTwo) : std::span<const std::int32_t>();
    }
    void on_selection(int /*layer*/, std::span<const std::int32_t> /*counts*/,
                      std::span<const std::int32_t> /*positions*/) override {
      ++num_seen;
    }
    int num_seen = 0;
  } hooks;
  const bool selects = plain.config().indexer_dims().has_value();
  start(1, 12);
  for (int i = 0; i < 5; ++i) decode({{0, i}}, &hooks);
  EXPECT_EQ(counts.num_first, kPartsPerStep - (selects ? 2 : 0));
  EXPECT_EQ(hooks.num_seen, selects ? 2 * 5 : 0);
}

TEST_P(PartsTest, AreOfFewDecodedRowsOnly) {
  start(1, 5);
  const auto tokens = random_tokens(kMostPartRows + 1, 96, 21);
  const auto feed = [&](int num_rows, Purpose purpose) {
    const auto rows = std::span(tokens).first(static_cast<std::size_t>(num_rows));
    return replaying.feed(sequences[0][0], rows, purpose, Logits::kLast);
  };
  feed(1, Purpose::kPrefill);
  feed(kMostPartRows + 1, Purpose::kDecode);
  EXPECT_EQ(counts.num_first, 0);
  feed(kMostPartRows, Purpose::kDecode);
  EXPECT_EQ(counts.num_first, kPartsPerStep);
}

TEST_P(PartsTest, EndWhereAStepDoes) {
  start(1, 5);
  decode({{0, 1}});
  decode({{0, 2}});
  CancelToken cancel;
  cancel.cancel();
  const TokenId token = 3;
  const Segment segment{&sequences[0][0], 0, 1, Purpose::kDecode, Logits::kLast};
  EXPECT_FALSE(replaying.runner().run({{&token, 1}, {&segment, 1}, nullptr, &cancel}).ok());
  decode({{0, 3}});
  decode({{0, 4}});
  EXPECT_EQ(counts.num_first, kPartsPerStep);
}

INSTANTIATE_TEST_SUITE_P(Models, PartsTest, testing::Values("deepseek_v32", "deepseek_v3"),
                         [](const auto& info) { return std::string(info.param); });

// With experts that are read ahead: how many are ranked changes the look ahead, and the part.
class PartsWithLookAhead : public PartsTest {
 protected:
  static TinyPaging few_slots() {
    TinyPaging paging;
    paging.num_slots = 12;
    return paging;
  }
  PartsWithLookAhead() : PartsTest(few_slots()) {}
};

TEST_P(PartsWithLookAhead, AreTheSame) {
  start(2, 5);
  for (int i = 0; i < 40; ++i) decode({{i % 2, (5 * i) % 96}});
  EXPECT_EQ(counts.num_first + counts.num_replayed, 40 * kPartsPerStep);
  EXPECT_LE(counts.num_first, 3 * kPartsPerStep);
}

INSTANTIATE_TEST_SUITE_P(Models, PartsWithLookAhead, testing::Values("deepseek_v32"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Parts, AreForgottenWithTheirPasses) {
  PartCounts counts;
  {
    TinyEngine engine(test::tiny_config(), std::make_unique<ReplayBackend>(
                                               std::make_unique<ReferenceBackend>(), counts));
    KvSequence kv = engine.sequence();
    engine.feed(kv, random_tokens(1, 96, 22), Purpose::kDecode, Logits::kLast);
    EXPECT_EQ(counts.num_kept, kPartsPerStep);
  }
  EXPECT_EQ(counts.num_kept, 0);
}

}  // namespace
}  // namespace stoker
