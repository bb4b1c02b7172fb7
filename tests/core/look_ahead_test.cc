// What a step tells the provider of experts ahead of time, and what it tells of itself afterwards.
#include <gtest/gtest.h>

#include <map>

#include "core/runtime/runner.h"
#include "cpu/reference_backend.h"
#include "tests/support/late_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::random_tokens;
using test::TinyEngine;
using Rows = std::vector<std::vector<float>>;

// Keeps what it is told. Counts one hit per use.
class ListeningExperts final : public ExpertProvider {
 public:
  struct Told {
    int at_layer, layer, lead, num_rows, num_ranked;
    std::vector<std::int32_t> experts;
  };

  ListeningExperts(std::unique_ptr<ExpertProvider> inner, int num_ranked)
      : inner_(std::move(inner)), num_ranked_(num_ranked) {}

  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override {
    hits_[layer] += static_cast<std::int64_t>(uses.size());
    return inner_->demand(layer, uses);
  }
  int num_ranked_guesses() const override { return num_ranked_; }
  void hint(const LookAhead& guesses) override {
    told.push_back({guesses.from,
                    guesses.layer,
                    guesses.lead,
                    guesses.num_rows,
                    guesses.num_ranked,
                    {guesses.experts.begin(), guesses.experts.end()}});
  }
  void wait(std::chrono::microseconds timeout) override { inner_->wait(timeout); }
  LayerCounters counters(int layer) const override {
    LayerCounters counters;
    const auto it = hits_.find(layer);
    if (it != hits_.end()) counters.hit = it->second;
    return counters;
  }

  std::vector<Told> told;

 private:
  std::unique_ptr<ExpertProvider> inner_;
  int num_ranked_;
  std::map<int, std::int64_t> hits_;
};

class Hooks final : public StepHooks {
 public:
  int num_ranked_wanted() override { return wanted; }
  void on_routes(int layer, const RouteMailbox& routes) override {
    chosen[layer].assign(routes.experts.begin(), routes.experts.end());
  }
  void on_look_ahead(const LookAhead& guesses) override {
    seen.emplace_back(guesses.from, guesses.layer);
  }
  LookAhead forced_look_ahead(int layer, int lead) override {
    if (forced.empty() || lead != 1) return {};
    return {layer - 1, layer, lead, 1, static_cast<int>(forced.size()), forced};
  }

  int wanted = 0;
  std::vector<std::int32_t> forced;
  std::map<int, std::vector<std::int32_t>> chosen;
  std::vector<std::pair<int, int>> seen;
};

struct Listened {
  explicit Listened(int num_ranked, std::unique_ptr<Backend> backend = nullptr)
      : engine(test::tiny_config(),
               backend ? std::move(backend) : std::make_unique<ReferenceBackend>(),
               test::kTinyRunner, [&](std::unique_ptr<ExpertProvider> inner) {
                 auto listening = std::make_unique<ListeningExperts>(std::move(inner), num_ranked);
                 experts = listening.get();
                 return listening;
               }) {}

  Rows run(std::span<const TokenId> tokens, StepHooks* hooks = nullptr) {
    KvSequence kv = engine.sequence();
    const Segment segment{&kv, 0, static_cast<int>(tokens.size()), Purpose::kDecode, Logits::kAll};
    const ForwardPtr forward = engine.runner().run({tokens, {&segment, 1}, hooks}).value();
    return TinyEngine::rows_of(*forward);
  }

  ListeningExperts* experts = nullptr;
  TinyEngine engine;
};

TEST(LookAheadTest, EveryLayerTellsOfTheNextTwoAndNothingElseChanges) {
  Listened with(5), without(0);
  const std::vector<TokenId> tokens = random_tokens(6, with.engine.config().vocab_size, 1);
  EXPECT_EQ(with.run(tokens), without.run(tokens));
  EXPECT_TRUE(without.experts->told.empty());
  // Layers 1, 2, 3 have experts: 1 tells of 2 and 3, 2 of 3; and 0, the last dense layer, of 1
  // and 2.
  ASSERT_EQ(with.experts->told.size(), 5u);
  const int expected[5][3] = {{0, 1, 1}, {0, 2, 2}, {1, 2, 1}, {1, 3, 2}, {2, 3, 1}};
  for (int i = 0; i < 5; ++i) {
    const auto& told = with.experts->told[i];
    EXPECT_EQ(told.at_layer, expected[i][0]);
    EXPECT_EQ(told.layer, expected[i][1]);
    EXPECT_EQ(told.lead, expected[i][2]);
    EXPECT_EQ(told.num_rows, 6);
    EXPECT_EQ(told.num_ranked, 5);
    ASSERT_EQ(told.experts.size(), 30u);
    for (int row = 0; row < 6; ++row) {  // a ranking: every expert at most once
      std::vector<std::int32_t> ranked(told.experts.begin() + row * 5,
                                       told.experts.begin() + row * 5 + 5);
      std::sort(ranked.begin(), ranked.end());
      EXPECT_EQ(std::unique(ranked.begin(), ranked.end()), ranked.end());
    }
  }
}

// A layer whose experts all weigh nothing would make the guess exact but for attention; here it is
// only required to be better than chance: 3 of 12 experts, guessed at random, would meet a quarter.
TEST(LookAheadTest, GuessesMeetTheChoiceMoreOftenThanChance) {
  Listened setup(3);
  const std::vector<TokenId> tokens = random_tokens(100, setup.engine.config().vocab_size, 2);
  Hooks hooks;
  setup.run(tokens, &hooks);
  int met = 0, guessed = 0;
  for (const auto& told : setup.experts->told) {
    if (told.lead != 1) continue;
    for (int row = 0; row < told.num_rows; ++row) {
      for (int i = 0; i < 3; ++i) {
        const auto* const chosen = &hooks.chosen[told.layer][static_cast<std::size_t>(row) * 3];
        met += static_cast<int>(std::count(chosen, chosen + 3, told.experts[row * 3 + i]));
        ++guessed;
      }
    }
  }
  EXPECT_GT(met, guessed * 2 / 5) << met << " of " << guessed;
}

TEST(LookAheadTest, HooksSeeItWhenTheProviderDoesNotAsk) {
  Listened setup(0);
  Hooks hooks;
  hooks.wanted = 4;
  setup.run(random_tokens(2, setup.engine.config().vocab_size, 3), &hooks);
  EXPECT_EQ(hooks.seen, (std::vector<std::pair<int, int>>{{0, 1}, {0, 2}, {1, 2}, {1, 3}, {2, 3}}));
  ASSERT_EQ(setup.experts->told.size(), 5u);
  EXPECT_EQ(setup.experts->told[0].num_ranked, 4);
}

TEST(LookAheadTest, ForcedGuessesTakeThePlaceOfTheGates) {
  Listened setup(4);
  Hooks hooks;
  hooks.forced = {7, 2};
  setup.run(random_tokens(1, setup.engine.config().vocab_size, 4), &hooks);
  ASSERT_EQ(setup.experts->told.size(), 5u);
  EXPECT_EQ(setup.experts->told[0].experts, hooks.forced);
  EXPECT_EQ(setup.experts->told[1].num_ranked, 4);  // lead 2: not forced
}

TEST(LookAheadTest, LateEventsTellTheSame) {
  Listened at_once(5);
  Listened late(5, std::make_unique<test::LateBackend>(std::make_unique<ReferenceBackend>(), 3));
  const std::vector<TokenId> tokens = random_tokens(6, late.engine.config().vocab_size, 5);
  EXPECT_EQ(late.run(tokens), at_once.run(tokens));
  ASSERT_EQ(late.experts->told.size(), 5u);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(late.experts->told[i].experts, at_once.experts->told[i].experts);
  }
}

TEST(StepListenerTest, HearsRowsAndCountersOfEachStep) {
  class Listener final : public StepListener {
   public:
    void on_step(const StepRecord& record) override {
      rows.push_back(record.num_rows);
      decode_rows.push_back(record.num_decode_rows);
      layers.assign(record.layers.begin(), record.layers.end());
      std::int64_t sum = 0;
      for (const LayerCounters& counters : record.counters) sum += counters.hit;
      hits.push_back(sum);
    }
    std::vector<int> rows, decode_rows, layers;
    std::vector<std::int64_t> hits;
  } listener;
  Listened setup(0);
  setup.engine.runner().set_listener(&listener);
  const std::vector<TokenId> tokens = random_tokens(2, setup.engine.config().vocab_size, 6);
  setup.run(std::span(tokens).first(1));
  setup.run(std::span(tokens).first(1));
  setup.run(tokens);
  EXPECT_EQ(listener.rows, (std::vector<int>{1, 1, 2}));
  EXPECT_EQ(listener.decode_rows, listener.rows);
  EXPECT_EQ(listener.layers, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(listener.hits[0], 9);  // 3 layers, 3 experts, one row
  EXPECT_EQ(listener.hits[1], 9);  // of that step alone
  EXPECT_GE(listener.hits[2], 9);
  EXPECT_EQ(setup.engine.runner().expert_counters().hit,
            listener.hits[0] + listener.hits[1] + listener.hits[2]);
}

}  // namespace
}  // namespace stoker
