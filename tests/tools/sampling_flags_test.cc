#include "tools/sampling_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace stoker::tools {
namespace {

using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

// The command line, parsed, over defaults that a model might publish.
Result<SamplerOptions> options_of(const std::string& line) {
  CLI::App app;
  SamplingFlags flags;
  add_sampling_flags(app, flags);
  app.parse(line);
  SamplerOptions published;
  published.temperature = 0.6f;
  published.top_p = 0.95f;
  return sampler_options(flags, published, 100);
}

TEST(SamplingFlags, WhatIsNotSaidComesFromTheModel) {
  const SamplerOptions options = options_of("").value();
  EXPECT_EQ(options.temperature, 0.6f);
  EXPECT_EQ(options.top_p, 0.95f);
  EXPECT_EQ(options.top_k, 0);
}

TEST(SamplingFlags, EachFlagSetsItsOption) {
  const SamplerOptions options =
      options_of(
          "--temperature 0.5 --top-p 0.8 --top-k 7 --min-p 0.1 --repetition-penalty 1.1 "
          "--presence-penalty 0.2 --frequency-penalty 0.3 --logit-bias 5=-1.5 --logit-bias 6=2 "
          "--seed 18446744073709551615")
          .value();
  EXPECT_EQ(options.temperature, 0.5f);
  EXPECT_EQ(options.top_p, 0.8f);
  EXPECT_EQ(options.top_k, 7);
  EXPECT_EQ(options.min_p, 0.1f);
  EXPECT_EQ(options.repetition_penalty, 1.1f);
  EXPECT_EQ(options.presence_penalty, 0.2f);
  EXPECT_EQ(options.frequency_penalty, 0.3f);
  EXPECT_THAT(options.logit_bias, UnorderedElementsAre(Pair(5, -1.5f), Pair(6, 2.0f)));
  EXPECT_EQ(options.seed, 18446744073709551615ull);
}

TEST(SamplingFlags, GreedyIsTemperatureZero) {
  EXPECT_EQ(options_of("--greedy").value().temperature, 0.0f);
  EXPECT_THROW((void)options_of("--greedy --temperature 1"), CLI::ParseError);
}

TEST(SamplingFlags, EveryRunDrawsAnew) {
  EXPECT_NE(options_of("").value().seed, options_of("").value().seed);
}

TEST(SamplingFlags, ValuesOutsideTheirRangeAreNamed) {
  EXPECT_THAT(options_of("--temperature -1").error().message(), HasSubstr("temperature is -1"));
  EXPECT_THAT(options_of("--top-p 0").error().message(), HasSubstr("top_p is 0"));
  EXPECT_THAT(options_of("--min-p 2").error().message(), HasSubstr("min_p is 2"));
  EXPECT_THAT(options_of("--logit-bias 100=1").error().message(), HasSubstr("token 100"));
  EXPECT_EQ(options_of("--top-p 0").error().code(), ErrorCode::kUsage);
  EXPECT_EQ(options_of("--logit-bias 100=1").error().code(), ErrorCode::kInvalidArgument);
  for (const char* bias : {"5", "5=", "=1", "x=1", "5=1x"}) {
    EXPECT_THROW((void)options_of(std::string("--logit-bias ") + bias), CLI::ParseError) << bias;
  }
}

}  // namespace
}  // namespace stoker::tools
