// Parts of decode steps as CUDA graphs: the same bits as without them, whatever comes in between.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/gpu/decode_run.h"
#include "tests/support/published_configs.h"

namespace stoker {
namespace {

using test::kTinyRunner;
using test::random_tokens;
using test::TinyEngine;

// Of a step of a tiny model.
constexpr int kPartsPerStep = 1 + 3;

class CudaGraphs : public CudaTest {
 protected:
  using Run = DecodeRun;

  static Run run_with(const CudaBackendOptions& options, const std::string& config) {
    ExpertManagerOptions manager;
    // So that experts are looked ahead for, always: few enough are here.
    manager.prefetch.adaptive = false;
    return {make_backend(options), config, manager};
  }
  // What `scenario` gives with and without graphs.
  template <typename F>
  static void expect_same(const CudaBackendOptions& options, const std::string& config,
                          F&& scenario) {
    CudaBackendOptions without = options;
    without.most_graphs = 0;
    Run plain = run_with(without, config), graphs = run_with(options, config);
    Rows expected, got;
    scenario(plain, expected);
    scenario(graphs, got);
    expect_same_rows(got, expected);
    EXPECT_EQ(plain.num_graphs(), 0);
    EXPECT_GE(graphs.num_graphs(), kPartsPerStep);
    EXPECT_LE(graphs.num_graphs(), options.most_graphs);
  }
  template <typename F>
  static void expect_same(F&& scenario) {
    const CudaBackendOptions options = options_for(GetParam());
    expect_same(options, test::tiny_config(), scenario);
    expect_same(options, test::tiny_config_for_tensor_cores(), scenario);
  }
};

// Over several ranges of visible positions.
TEST_P(CudaGraphs, ManyTokensGiveTheSameBits) {
  const auto decode = [](Run& run, Rows& rows) {
    run.start({3});
    for (int i = 0; i < 340; ++i) run.step(rows, {0}, i);
  };
  expect_same(decode);
  expect_same(options_for(GetParam()), test::tiny_config("deepseek_v3"), decode);
}

// The switch from dense to sparse within a range, and at its end.
TEST_P(CudaGraphs, TheIndexerMaySetInAnywhere) {
  for (const char* top_k : {"100", "128"}) {
    const std::string config =
        test::with_field(test::tiny_config_for_tensor_cores(), "index_topk", top_k);
    expect_same(options_for(GetParam()), config, [](Run& run, Rows& rows) {
      run.start({90, 60});
      for (int i = 0; i < 50; ++i) run.step(rows, {0}, i);
      for (int i = 0; i < 50; ++i) run.step(rows, {0, 1}, i);
    });
  }
}

TEST_P(CudaGraphs, SessionsTakeTurnsAndShareSteps) {
  expect_same([](Run& run, Rows& rows) {
    run.start({5, 61, 130, 250});
    for (int i = 0; i < 40; ++i) {
      run.step(rows, {0}, i);
      run.step(rows, {3}, i);
      if (i % 2 == 0) run.step(rows, {1, 2}, i);
      if (i % 3 == 0) run.step(rows, {3, 0, 1}, i);
      if (i % 5 != 0) run.step(rows, {0, 1, 2, 3}, i);
      if (i == 20) {
        run.sequences[3].rewind(100);
        run.sequences[1] = run.sequences[2].fork();
      }
    }
  });
}

// Another pass between the layers, and scratch that grows under graphs that hold it.
TEST_P(CudaGraphs, PromptsComeInBetween) {
  expect_same([](Run& run, Rows& rows) {
    run.start({5});
    run.sequences.push_back(run.engine->sequence());
    const auto prompt = random_tokens(128, run.engine->config().vocab_size, 61);
    for (int i = 0; i < 12; ++i) {
      run.step(rows, {0}, i);
      const auto chunk = std::span(prompt).first(static_cast<std::size_t>(10 * i + 1));
      const Segment segment{&run.sequences[1], 0, static_cast<int>(chunk.size()), Purpose::kPrefill,
                            Logits::kLast};
      const ForwardPtr forward = run.runner().begin({chunk, {&segment, 1}}).value();
      while (!forward->done()) {
        ASSERT_TRUE(forward->run_layer(run.runner()).ok());
        run.step(rows, {0}, i);
      }
      const Rows last = TinyEngine::rows_of(*forward);
      rows.insert(rows.end(), last.begin(), last.end());
    }
  });
}

// Tables of a step that grow under graphs, and such as hold something else behind what layers read.
TEST_P(CudaGraphs, TablesOfStepsMayChange) {
  expect_same([](Run& run, Rows& rows) {
    run.start({250, 1});  // a long one first: scratch does not move after it
    for (int i = 0; i < 4; ++i) run.step(rows, {1}, i);
    run.step(rows, {0, 1}, 4);
    for (int i = 5; i < 9; ++i) {
      const TokenId token = run.token(i);
      run.engine->feed(run.sequences[1], {&token, 1}, Purpose::kDecode, Logits::kNone);
      run.step(rows, {1}, i);
    }
  });
}

// Takes the experts that it is told.
struct ForcedRoutes final : StepHooks {
  std::span<const std::int32_t> forced_experts(int layer) override {
    experts = {(layer + step) % 4, 4 + step % 4, 8 + layer % 4};
    if (step == bad_step && layer == 2) experts[1] = 12;  // of 12
    return experts;
  }
  std::vector<std::int32_t> experts;
  int step = 0, bad_step = -1;
};

TEST_P(CudaGraphs, RoutesMayBeForced) {
  expect_same([](Run& run, Rows& rows) {
    ForcedRoutes hooks;
    run.start({5});
    for (hooks.step = 0; hooks.step < 20; ++hooks.step) {
      run.step(rows, {0}, hooks.step, &hooks);
      run.step(rows, {0}, hooks.step);
    }
  });
}

// Whether its part ran as it came, was captured, or stood for a graph.
TEST_P(CudaGraphs, AFailedStepLeavesNothingBehind) {
  for (const int bad_step : {0, 1, 2, 5}) {
    expect_same(options_for(GetParam()), test::tiny_config(), [&](Run& run, Rows& rows) {
      ForcedRoutes hooks;
      hooks.bad_step = bad_step;
      run.start({5});
      for (hooks.step = 0; hooks.step < 8; ++hooks.step) {
        if (hooks.step == bad_step) {
          const auto failed = run.try_step({0}, hooks.step, &hooks);
          ASSERT_FALSE(failed.ok());
          EXPECT_EQ(failed.error().code(), ErrorCode::kInvalidArgument);
        } else {
          run.step(rows, {0}, hooks.step, &hooks);
        }
      }
      for (int i = 0; i < 4; ++i) run.step(rows, {0}, i);
    });
  }
}

TEST_P(CudaGraphs, AreNoMoreThanWanted) {
  CudaBackendOptions options = options_for(GetParam());
  options.most_graphs = kPartsPerStep + 1;
  expect_same(options, test::tiny_config(), [](Run& run, Rows& rows) {
    run.start({5, 70});
    for (int i = 0; i < 30; ++i) {
      run.step(rows, {0}, i);
      run.step(rows, {0}, i);
      if (i % 10 == 0) run.step(rows, {0, 1}, i);
    }
    for (int i = 0; i < 5; ++i) run.step(rows, {1}, i);
  });
}

TEST_P(CudaGraphs, ServeARangeOfTokens) {
  Run run = run_with(options_for(GetParam()), test::tiny_config());
  run.start({10});
  Rows rows;
  for (int i = 0; i < 4; ++i) run.step(rows, {0}, i);
  const int early = run.num_graphs();
  EXPECT_GE(early, kPartsPerStep);
  for (int i = 4; i < 50; ++i) run.step(rows, {0}, i);  // up to position 60
  EXPECT_EQ(run.num_graphs(), early);
  for (int i = 50; i < 60; ++i) run.step(rows, {0}, i);
  EXPECT_GT(run.num_graphs(), early);
  EXPECT_LE(run.num_graphs(), early + kPartsPerStep);
}

// A meter in the stream, for which time between steps does not count.
TEST_P(CudaGraphs, TheMeterGoesOn) {
  CudaBackendOptions options = options_for(GetParam());
  options.measure_busy = true;
  expect_same(options, test::tiny_config(), [](Run& run, Rows& rows) {
    run.start({5});
    run.step(rows, {0}, 0);
    const std::int64_t before = run.backend->busy_us();
    constexpr int kSteps = 10, kIdleMs = 30;
    for (int i = 1; i <= kSteps; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(kIdleMs));
      run.step(rows, {0}, i);
    }
    const std::int64_t busy = run.backend->busy_us() - before;
    EXPECT_GT(busy, 0);
    EXPECT_LT(busy, kSteps * kIdleMs * 1000 / 2);
  });
}

// With all that passes take reserved, the tables of steps stay where they are.
TEST_P(CudaGraphs, ReservedScratchIsEnough) {
  const std::string config = test::tiny_config_for_tensor_cores();
  CudaBackendOptions options = options_for(GetParam());
  const int most_rows = std::max(kTinyRunner.prefill_rows, kTinyRunner.decode_rows);
  options.scratch = cuda_scratch(ModelConfig::parse(config).value(),
                                 {most_rows, std::max(kTinyRunner.prefill_logit_rows, most_rows)},
                                 kTinyRunner.context_tokens, options);
  expect_same(options, config, [&](Run& run, Rows& rows) {
    run.start({700, 30});
    for (int i = 0; i < 80; ++i) run.step(rows, {0, 1}, i);
    EXPECT_EQ(cuda_scratch_held(*run.backend), options.scratch);
  });
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaGraphs, testing::ValuesIn(kCacheTypes), types_of_test);

}  // namespace
}  // namespace stoker
