#include "tools/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <ostream>

#include "cpu/reference_backend.h"
#include "prefetch/eviction_policy.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"
#include "tools/modelled_experts.h"
#include "tools/trace_generator.h"
#include "tools/trace_hooks.h"

namespace stoker::tools {
namespace {

using ::testing::HasSubstr;

// Hits, late hits and misses by layer, of every step.
class CountSteps final : public StepListener {
 public:
  struct Counts {
    std::int64_t hit, late, miss;
    bool operator==(const Counts&) const = default;
    friend std::ostream& operator<<(std::ostream& out, const Counts& counts) {
      return out << counts.hit << "+" << counts.late << "+" << counts.miss;
    }
  };
  void on_step(const StepRecord& record) override {
    std::vector<Counts>& step = steps.emplace_back();
    for (const LayerCounters& layer : record.counters)
      step.push_back({layer.hit, layer.late, layer.miss});
  }
  std::vector<std::vector<Counts>> steps;
};

ModelConfig slice() {
  return ModelConfig::parse(test::with_field(test::deepseek_v32_config(), "num_hidden_layers", "9"))
      .value();
}

RoutingTrace generated(const ModelConfig& config, int tokens, int prefill = 0) {
  GeneratedTrace wanted;
  wanted.num_tokens = tokens;
  wanted.num_prefill = prefill;
  wanted.seed = 5;
  return generate_trace(config, wanted).value();
}

constexpr QuantSpec kInt4{QuantFormat::kInt4, 64};

// Costs in which one layer's experts take about as long to compute as to read.
SimulationOptions options_of(int num_slots, bool prefetch) {
  SimulationOptions options;
  options.num_slots = num_slots;
  options.prefetch.enabled = prefetch;
  options.costs = costs_at_bandwidth(slice(), kInt4, 50e9);
  return options;
}

// A run of the tiny model, recorded, and the replay of its trace: the same counts in every layer
// and step.
TEST(Simulate, RepeatsARunWithoutPrefetchExactly) {
  for (const std::string_view policy : eviction_policy_names()) {
    for (const int num_slots : {3, 5, 9, 20, 36}) {
      SCOPED_TRACE(fmt::format("{}, {} slots", policy, num_slots));
      test::TinyPaging paging;
      paging.num_slots = num_slots;
      paging.manager.policy = policy;
      paging.manager.prefetch.enabled = false;
      test::TinyEngine engine(test::tiny_config(), std::make_unique<ReferenceBackend>(),
                              test::kTinyRunner, nullptr, paging);
      TraceRecorder recorder(engine.config(), "tiny");
      CountSteps ran;
      engine.runner().set_listener(&ran);
      KvSequence kv = engine.sequence();
      const std::vector<TokenId> tokens = test::random_tokens(40, 96, 3);
      // Steps of one row, and of two, which may want more than the fewest slots hold.
      for (int i = 0; i < 40;) {
        const int rows = i % 7 == 6 && i + 2 <= 40 ? 2 : 1;
        const Segment segment{&kv, 0, rows, Purpose::kDecode, Logits::kLast};
        ASSERT_TRUE(engine.runner()
                        .run({std::span(tokens).subspan(i, rows), {&segment, 1}, &recorder})
                        .ok());
        i += rows;
      }
      SimulationOptions options;
      options.num_slots = num_slots;
      options.policy = policy;
      options.prefetch.enabled = false;
      CountSteps replayed;
      const auto result = simulate(engine.config(), {}, recorder.trace(), options, &replayed);
      ASSERT_TRUE(result.ok()) << result.error().message();
      EXPECT_EQ(replayed.steps, ran.steps);
    }
  }
}

TEST(Simulate, SpendsWhatComputingCostsAndWaitsForTheRest) {
  const ModelConfig config = slice();
  const RoutingTrace trace = generated(config, 60);
  SimulationOptions options = options_of(6 * 256, false);
  // Everything fits and comes at once: what is left is computing, to the microsecond.
  options.drives[0].bytes_per_second = 1e18;
  options.drives[0].latency_us = 0;
  const double token_us = options.costs.token_us(6, 8);
  SimulatedSteps fast = simulate(config, kInt4, trace, options)->decode;
  EXPECT_NEAR(static_cast<double>(fast.us), 60 * token_us, 60 * 6 * 8);
  EXPECT_NEAR(fast.least_us, 60 * token_us, 1.0);
  // A real drive adds the waiting, and nothing else; counts do not change.
  options.drives[0].bytes_per_second = 3e9;
  SimulatedSteps slow = simulate(config, kInt4, trace, options)->decode;
  EXPECT_GT(slow.counters.felt_wait_us, fast.us / 2);
  EXPECT_NEAR(static_cast<double>(slow.us - slow.counters.felt_wait_us), 60 * token_us, 60);
  EXPECT_EQ(slow.counters.miss, fast.counters.miss);
  EXPECT_EQ(slow.counters.hit, fast.counters.hit);
  const std::int64_t expert_bytes = ModelledExperts(config, kInt4).expert_bytes(3);
  EXPECT_EQ(slow.counters.demand_bytes, slow.counters.miss * expert_bytes);
  // Two such drives help, though not as much as one of twice the speed: what is missing does not
  // lie on them in equal parts.
  options.drives.push_back(options.drives[0]);
  const std::int64_t two = simulate(config, kInt4, trace, options)->decode.us;
  options.drives = {options.drives[0]};
  options.drives[0].bytes_per_second = 6e9;
  const std::int64_t twice = simulate(config, kInt4, trace, options)->decode.us;
  EXPECT_LT(two, slow.us);
  EXPECT_GT(two, twice);
  EXPECT_LT(two - twice, (slow.us - twice) / 2);
}

TEST(Simulate, NothingBeatsItsBounds) {
  const ModelConfig config = slice();
  const RoutingTrace trace = generated(config, 90, 30);
  for (const Predictor predictor : {Predictor::kGate, Predictor::kPrevious, Predictor::kPerfect}) {
    const RoutingTrace guessed = with_predictor(trace, predictor);
    for (const int num_slots : {60, 400}) {
      for (const double speed : {3e9, 20e9}) {
        for (const bool prefetch : {false, true}) {
          for (const std::int64_t skipped : {0, 45}) {
            SimulationOptions options = options_of(num_slots, prefetch);
            options.drives[0].bytes_per_second = speed;
            options.skipped_tokens = skipped;
            const auto result = simulate(config, kInt4, guessed, options);
            ASSERT_TRUE(result.ok()) << result.error().message();
            SCOPED_TRACE(fmt::format("{} slots, {} B/s, prefetch {}", num_slots, speed, prefetch));
            EXPECT_EQ(result->prefill.num_tokens, skipped == 0 ? 30 : 0);
            EXPECT_EQ(result->decode.num_tokens, skipped == 0 ? 60 : 45);
            for (const SimulatedSteps& kind : {result->prefill, result->decode}) {
              EXPECT_GE(static_cast<double>(kind.us), kind.least_us - 1.0);
              if (!prefetch) {
                EXPECT_GE(kind.counters.miss, kind.fewest_reads);
              }
            }
          }
        }
      }
    }
  }
}

// Where the drive is idle half the time: guesses help, and the better the more.
TEST(Simulate, PrefetchTurnsGuessesIntoTime) {
  const ModelConfig config = slice();
  const RoutingTrace trace = generated(config, 300);
  const auto run = [&](bool prefetch, Predictor predictor) {
    SimulationOptions options = options_of(6 * 26, prefetch);
    options.drives[0].bytes_per_second = 14e9;
    options.skipped_tokens = 100;
    return simulate(config, kInt4, with_predictor(trace, predictor), options)->decode;
  };
  const SimulatedSteps off = run(false, Predictor::kGate);
  const SimulatedSteps gate = run(true, Predictor::kGate);
  const SimulatedSteps perfect = run(true, Predictor::kPerfect);
  EXPECT_EQ(off.counters.late + off.counters.prefetch_used_bytes, 0);
  EXPECT_LT(gate.us, off.us * 95 / 100);
  EXPECT_LT(perfect.us, gate.us);
  EXPECT_LT(perfect.counters.prefetch_wasted_bytes, gate.counters.prefetch_wasted_bytes / 4);
}

TEST(Simulate, ARunIsTheSameEveryTime) {
  const ModelConfig config = slice();
  const RoutingTrace trace = generated(config, 80);
  const SimulationOptions options = options_of(300, true);
  const Simulated once = simulate(config, kInt4, trace, options).value();
  const Simulated again = simulate(config, kInt4, trace, options).value();
  EXPECT_EQ(once.decode.us, again.decode.us);
  EXPECT_EQ(once.decode.counters.prefetch_wasted_bytes,
            again.decode.counters.prefetch_wasted_bytes);
}

TEST(Simulate, RefusesFewerSlotsThanATokenNeeds) {
  const ModelConfig config = slice();
  const auto result = simulate(config, kInt4, generated(config, 3), options_of(7, false));
  EXPECT_THAT(result.error().message(), HasSubstr("room for 7 experts, and a token needs 8"));
}

TEST(WithPredictor, GuessesWhatItSays) {
  const ModelConfig config = slice();
  const RoutingTrace trace = generated(config, 4);
  const RoutingTrace perfect = with_predictor(trace, Predictor::kPerfect);
  const RoutingTrace previous = with_predictor(trace, Predictor::kPrevious);
  EXPECT_EQ(perfect.num_ranked, 8);
  for (int token = 0; token < 4; ++token) {
    EXPECT_TRUE(std::ranges::equal(perfect.guessed(2, token, 3), trace.chosen(token, 3)));
    EXPECT_EQ(perfect.guessed(2, token, 0)[0], kNoGuess);
    if (token == 0) {
      EXPECT_EQ(previous.guessed(1, 0, 0)[0], kNoGuess);
    } else {
      EXPECT_TRUE(std::ranges::equal(previous.guessed(1, token, 1), trace.chosen(token - 1, 1)));
    }
  }
  EXPECT_EQ(with_predictor(trace, Predictor::kGate).guesses, trace.guesses);
}

TEST(ComputeCosts, FollowBytesAndBandwidth) {
  const ModelConfig config = ModelConfig::parse(test::deepseek_v32_config()).value();
  QuantSpec fp8;
  fp8.format = QuantFormat::kF8E4m3B128;
  const ComputeCosts costs = costs_at_bandwidth(config, fp8, 100e9);
  // Blocks are padded, hence a little more.
  const double token_us = static_cast<double>(config.active_bytes(fp8)) / 100e3;
  EXPECT_NEAR(costs.token_us(58, 8) / token_us, 1.0, 0.01);
  EXPECT_NEAR(costs_at_bandwidth(config, fp8, 50e9).layer_us, 2.0 * costs.layer_us, 1e-6);
}

TEST(ComputeCosts, AreScaledToARun) {
  const ModelConfig config = slice();
  const ComputeCosts costs = costs_at_bandwidth(config, kInt4, 50e9);
  const auto step = [](int rows, int us, int wait) {
    return fmt::format(
        R"({{"rows": {}, "decode_rows": {}, "us": {}, "layers": [{{"felt_wait_us": {}}},
            {{"felt_wait_us": 5}}]}})",
        rows, rows, us, wait);
  };
  const std::string stats = fmt::format(R"({{"tokens": [{}, {}, {}, {}]}})", step(1, 2005, 1000),
                                        step(1, 1005, 100), step(1, 99005, 100), step(3, 5, 0));
  const ComputeCosts scaled = calibrated(costs, config, stats).value();
  EXPECT_NEAR(scaled.token_us(6, 8), 1000.0, 1e-6);
  EXPECT_NEAR(scaled.expert_us / costs.expert_us, scaled.layer_us / costs.layer_us, 1e-9);
  for (const char* bad : {"", "[]", "{}", R"({"tokens": [{"rows": 1}]})", R"({"tokens": 3})"}) {
    EXPECT_THAT(calibrated(costs, config, bad).error().message(), HasSubstr("no --stats file"))
        << bad;
  }
  EXPECT_THAT(calibrated(costs, config, R"({"tokens": []})").error().message(),
              HasSubstr("no step decodes a single token"));
}

}  // namespace
}  // namespace stoker::tools
