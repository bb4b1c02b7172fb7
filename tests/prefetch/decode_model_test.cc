// What fetching ahead gains, and that it never costs, in modelled time: the goals of the design,
// held on routing that drifts like a trained router's.
#include "tests/prefetch/decode_model.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/thread_sanitizer.h"

namespace stoker {
namespace {

using test::DecodeModel;
using test::DecodeModelOptions;
using test::DriftingRouter;

// The claims below are about routing like what is published of 256-expert routers.
TEST(DriftingRouter, LooksLikeATrainedRouter) {
  SKIP_UNDER_THREAD_SANITIZER();
  DriftingRouter router({}, 1);
  const int num_layers = router.options().num_layers;
  std::vector<std::set<int>> previous(static_cast<std::size_t>(num_layers));
  double overlap = 0, near = 0, far = 0;
  constexpr int kTokens = 60;
  for (int token = 0; token <= kTokens; ++token) {
    for (int layer = 0; layer < num_layers; ++layer) {
      const auto chosen = router.chosen(layer);
      const std::set<int> set(chosen.begin(), chosen.end());
      auto& before = previous[layer];
      if (token > 0) {
        for (const int expert : router.guessed(layer, 1, 8)) near += set.contains(expert) ? 1 : 0;
        for (const int expert : router.guessed(layer, 2, 8)) far += set.contains(expert) ? 1 : 0;
        for (const int expert : before) overlap += set.contains(expert) ? 1 : 0;
      }
      before = set;
    }
    router.next_token();
  }
  const double all = 8.0 * kTokens * num_layers;
  EXPECT_NEAR(overlap / all, 0.33, 0.04);
  EXPECT_NEAR(near / all, 0.75, 0.04);
  EXPECT_NEAR(far / all, 0.68, 0.05);
}

TEST(DecodeModel, HitRatesFollowTheCache) {
  SKIP_UNDER_THREAD_SANITIZER();
  for (const auto& [cached, hit] :
       {std::pair(0.10, 0.40), std::pair(0.25, 0.57), std::pair(0.40, 0.69)}) {
    DecodeModelOptions options;
    options.cached = cached;
    options.manager.prefetch.enabled = false;
    DecodeModel model(options);
    model.decode(100);
    const LayerCounters before = model.total();
    model.decode(100);
    const LayerCounters counted = model.total() - before;
    EXPECT_NEAR(static_cast<double>(counted.hit) / static_cast<double>(counted.hit + counted.miss),
                hit, 0.05)
        << cached;
    EXPECT_EQ(counted.late, 0);
    EXPECT_EQ(counted.prefetch_used_bytes + counted.prefetch_wasted_bytes, 0);
  }
}

struct Ratio {
  double gain = 0.0;      // time per token without prefetch / with
  double idle = 0.0;      // of the drive, without prefetch
  LayerCounters counted;  // with
};

Ratio on_to_off(DecodeModelOptions options, int num_tokens = 150) {
  options.manager.prefetch.enabled = false;
  DecodeModel off(options);
  off.decode(60);
  const std::int64_t busy_us = off.reader().load().busy_us;
  const double off_us = off.decode(num_tokens);
  options.manager.prefetch.enabled = true;
  DecodeModel on(options);
  on.decode(60);
  const LayerCounters before = on.total();
  const double on_us = on.decode(num_tokens);
  return {off_us / on_us,
          1.0 - static_cast<double>(off.reader().load().busy_us - busy_us) / (off_us * num_tokens),
          on.total() - before};
}

// Reads and computing in turns: the drive idles a good third of the time, and compute waits for it
// for nearly as long.
TEST(Prefetch, GainsAFifthWhereTheDriveHasIdleTimeAndComputeWaits) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.cached = 0.40;
  options.attention_us = 4000;
  options.expert_us = 100;
  for (const bool adaptive : {false, true}) {
    options.manager.prefetch.adaptive = adaptive;
    const Ratio ratio = on_to_off(options);
    EXPECT_GT(ratio.idle, 0.30);
    EXPECT_LT(ratio.idle, 0.60);
    EXPECT_GT(ratio.gain, 1.2) << "adaptive " << adaptive;
    EXPECT_GT(ratio.counted.prefetch_used_bytes, ratio.counted.prefetch_wasted_bytes);
  }
}

TEST(Prefetch, CostsNothingWhereTheDriveIsSaturated) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.cached = 0.10;
  options.bytes_per_second = 1e9;
  for (const bool noise : {false, true}) {
    options.gates_know_nothing = noise;
    const Ratio ratio = on_to_off(options, 100);
    EXPECT_LT(ratio.idle, 0.05);
    EXPECT_GT(ratio.gain, 0.99) << "noise " << noise;
  }
}

TEST(Prefetch, CostsNothingWhereTheDriveIsNeverIdle) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.attention_us = 0;
  options.expert_us = 0;
  options.gate_us = 0;
  const Ratio ratio = on_to_off(options);
  EXPECT_GT(ratio.gain, 0.99);
  EXPECT_EQ(ratio.counted.prefetch_wasted_bytes, 0);
}

TEST(Prefetch, CostsNothingWhereGuessesAreNoise) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.gates_know_nothing = true;
  for (const double cached : {0.04, 0.10, 0.40}) {
    options.cached = cached;
    const Ratio ratio = on_to_off(options);
    EXPECT_GT(ratio.gain, 0.99) << cached;
    EXPECT_LT(static_cast<double>(ratio.counted.prefetch_wasted_bytes),
              0.05 * static_cast<double>(ratio.counted.demand_bytes));
  }
}

// All but the first reads are over, and computing the gates is all that prefetch would still do:
// the switch finds out.
TEST(Prefetch, IsSwitchedOffWhereNothingIsLeftToGain) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.cached = 0.40;
  options.bytes_per_second = 40e9;
  options.gate_us = 100;
  DecodeModel model(options);
  model.decode(300);
  EXPECT_FALSE(model.manager().prefetcher().fetching());
  EXPECT_EQ(model.manager().num_ranked_guesses(), 0);
  EXPECT_LT(model.manager().prefetcher().prefetch_switch().gain(), 0.02);
  EXPECT_GT(on_to_off(options, 600).gain, 0.98);
}

TEST(Prefetch, ForeseesMostMisses) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.manager.prefetch.adaptive = false;
  DecodeModel model(options);
  model.decode(150);
  const PredictionScore score = model.manager().prefetcher().predictor().score();
  EXPECT_GT(static_cast<double>(score.foreseen), 0.65 * static_cast<double>(score.would_miss));
  EXPECT_GT(static_cast<double>(score.foreseen), 0.5 * static_cast<double>(score.guessed));
  const auto& predictor = model.manager().prefetcher().predictor();
  EXPECT_GT(predictor.worth(ExpertPredictor::Voter::kNextLayer, 0), 0.8);
  EXPECT_LT(predictor.worth(ExpertPredictor::Voter::kNextLayer, 12), 0.25);
}

// ---- Prefill.

TEST(Prefill, ReadsEachNeededExpertOnceAndLeavesDecodeItsOwn) {
  SKIP_UNDER_THREAD_SANITIZER();
  for (const bool prefetch : {false, true}) {
    DecodeModelOptions options;
    options.manager.prefetch.enabled = prefetch;
    options.manager.prefetch.adaptive = false;
    DecodeModel model(options);
    model.decode(60);
    const LayerCounters before = model.total();
    const std::int64_t read_before = model.manager().bytes_read();
    model.prefill(256);
    const LayerCounters sweep = model.total() - before;
    const auto needed = static_cast<double>(sweep.hit + sweep.late + sweep.miss) *
                        DecodeModel::kBlockBytes * (DecodeModel::kGateUp + DecodeModel::kDown);
    const auto read = static_cast<double>(model.manager().bytes_read() - read_before);
    EXPECT_LE(read, 1.02 * needed);
    const LayerCounters after_sweep = model.total();
    model.decode(20);
    const LayerCounters decode = model.total() - after_sweep;
    EXPECT_GT(static_cast<double>(decode.hit),
              0.5 * static_cast<double>(decode.hit + decode.late + decode.miss));
  }
}

// Computing takes as long as reading: both go on side by side, the next layer's experts are on
// their way before it is reached, and little is waited for.
TEST(Prefill, ReadingHidesBehindComputing) {
  SKIP_UNDER_THREAD_SANITIZER();
  DecodeModelOptions options;
  options.prefill_row_us = 150;
  options.manager.prefetch.enabled = false;
  DecodeModel off(options);
  off.decode(30);
  const double off_us = off.prefill(512);
  options.manager.prefetch.enabled = true;
  options.manager.prefetch.adaptive = false;
  DecodeModel on(options);
  on.decode(30);
  const double on_us = on.prefill(512);
  const double compute_us = options.router.num_layers * 512 * 150 * (1.0 + options.router.top_k);
  EXPECT_LT(on_us, 1.05 * compute_us);
  EXPECT_LE(on_us, 1.005 * off_us);
  EXPECT_GT(on.total().prefetch_used_bytes, 10 * on.total().prefetch_wasted_bytes);
}

}  // namespace
}  // namespace stoker
