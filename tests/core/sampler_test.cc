#include "core/runtime/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace stoker {
namespace {

std::map<TokenId, double> frequencies(const SamplerOptions& options, std::span<const float> logits,
                                      int draws) {
  Sampler sampler(options, static_cast<int>(logits.size()));
  std::map<TokenId, double> counts;
  for (int i = 0; i < draws; ++i) counts[sampler.sample(logits)] += 1.0 / draws;
  return counts;
}

const std::vector<float> kLogits = {std::log(0.5f), std::log(0.3f), std::log(0.15f),
                                    std::log(0.05f)};

TEST(Sampler, GreedyTakesTheHighestAndTheLowerIdAmongEquals) {
  SamplerOptions greedy;
  greedy.temperature = 0.0f;
  Sampler sampler(greedy, 4);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 3, 2}), 1);
}

TEST(Sampler, DrawsWithTheGivenProbabilities) {
  const auto counts = frequencies({}, kLogits, 20000);
  EXPECT_NEAR(counts.at(0), 0.5, 0.015);
  EXPECT_NEAR(counts.at(1), 0.3, 0.015);
  EXPECT_NEAR(counts.at(3), 0.05, 0.01);
}

TEST(Sampler, TemperatureSharpens) {
  SamplerOptions options;
  options.temperature = 0.5f;
  const auto counts = frequencies(options, kLogits, 20000);
  const double total = 0.25 + 0.09 + 0.0225 + 0.0025;
  EXPECT_NEAR(counts.at(0), 0.25 / total, 0.015);
}

TEST(Sampler, TopKTopPAndMinPCutTheTail) {
  SamplerOptions options;
  options.top_k = 2;
  EXPECT_EQ(frequencies(options, kLogits, 2000).size(), 2u);
  options = {};
  options.top_p = 0.75f;  // 0.5 + 0.3 reach it
  EXPECT_EQ(frequencies(options, kLogits, 2000).size(), 2u);
  options = {};
  options.min_p = 0.25f;  // 0.15 / 0.5 stays, 0.05 / 0.5 goes
  EXPECT_EQ(frequencies(options, kLogits, 2000).size(), 3u);
  options.top_p = 1e-6f;
  EXPECT_EQ(frequencies(options, kLogits, 100).size(), 1u);
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  std::vector<float> flat(1000);
  for (std::size_t i = 0; i < flat.size(); ++i) flat[i] = std::sin(static_cast<float>(i));
  SamplerOptions options;
  options.seed = 5;
  Sampler a(options, 1000), b(options, 1000);
  options.seed = 6;
  Sampler c(options, 1000);
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const TokenId token = a.sample(flat);
    EXPECT_EQ(token, b.sample(flat));
    different += token != c.sample(flat) ? 1 : 0;
  }
  EXPECT_GT(different, 90);
}

TEST(Sampler, ManyCandidatesAreDrawnBeyondTheFirstSort) {
  const std::vector<float> flat(5000, 0.25f);
  EXPECT_GT(frequencies({}, flat, 2000).size(), 1500u);
}

TEST(Sampler, PenaltiesAndBias) {
  SamplerOptions options;
  options.temperature = 0.0f;
  options.repetition_penalty = 2.0f;
  Sampler repetition(options, 3);
  const std::vector<float> logits = {4.0f, 3.0f, -1.0f};
  repetition.accept(0);
  EXPECT_EQ(repetition.sample(logits), 1);
  repetition.forget(0);
  EXPECT_EQ(repetition.sample(logits), 0);

  options = {.temperature = 0.0f, .frequency_penalty = 0.6f};
  Sampler frequency(options, 3);
  frequency.accept(0);
  EXPECT_EQ(frequency.sample(logits), 0);
  frequency.accept(0);
  EXPECT_EQ(frequency.sample(logits), 1);

  options = {.temperature = 0.0f, .presence_penalty = 1.5f};
  Sampler presence(options, 3);
  presence.accept(0);
  EXPECT_EQ(presence.sample(logits), 1);

  options = {.temperature = 0.0f, .logit_bias = {{2, 100.0f}, {0, -INFINITY}}};
  EXPECT_EQ(Sampler(options, 3).sample(logits), 2);
}

TEST(Sampler, RefusesWhatMakesNoSense) {
  const auto message = [](SamplerOptions options) {
    const Status status = validate(options, 10);
    return status.ok() ? std::string() : status.error().message();
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.temperature = -1.0f}), "temperature is -1; it must be between 0 and 100");
  EXPECT_EQ(message({.temperature = NAN}), "temperature is nan; it must be between 0 and 100");
  EXPECT_EQ(message({.top_p = 0.0f}), "top_p is 0; it must be in (0, 1]");
  EXPECT_EQ(message({.top_k = -1}), "top_k is -1; it must be 0 (all) or more");
  EXPECT_EQ(message({.min_p = 2.0f}), "min_p is 2; it must be in [0, 1]");
  EXPECT_EQ(message({.repetition_penalty = 0.0f}),
            "repetition_penalty is 0; it must be more than 0");
  EXPECT_EQ(message({.logit_bias = {{10, 1.0f}}}),
            "logit_bias names token 10 of a vocabulary of 10");
}

}  // namespace
}  // namespace stoker
