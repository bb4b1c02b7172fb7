#include "core/text/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/published_configs.h"
#include "tests/support/temp_dir.h"

namespace stoker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const ModelConfig& model() {
  static const ModelConfig config = *ModelConfig::parse(test::deepseek_v32_config());
  return config;
}

TEST(GenerationConfig, ReadsWhatIsThere) {
  const auto got = GenerationConfig::parse(
      R"({"_from_model_config": true, "bos_token_id": 5, "eos_token_id": [1, 9],
          "do_sample": false, "temperature": 0.6, "top_p": 0.9, "transformers_version": "4"})",
      model());
  ASSERT_TRUE(got.ok()) << got.error().message();
  EXPECT_FALSE(got->do_sample);
  EXPECT_EQ(got->temperature, 0.6);
  EXPECT_EQ(got->top_p, 0.9);
  EXPECT_EQ(got->bos_token_id, 5);
  EXPECT_THAT(got->eos_token_id, ElementsAre(1, 9));
}

TEST(GenerationConfig, DefaultsWithoutFieldsOrFile) {
  const test::TempDir dir;
  for (const auto& got :
       {GenerationConfig::parse("{}", model()), GenerationConfig::load(dir.path(), model())}) {
    ASSERT_TRUE(got.ok()) << got.error().message();
    EXPECT_TRUE(got->do_sample);
    EXPECT_EQ(got->temperature, 1.0);
    EXPECT_EQ(got->top_p, 0.95);
    EXPECT_EQ(got->bos_token_id, 0);
    EXPECT_THAT(got->eos_token_id, ElementsAre(1));
  }
}

TEST(GenerationConfig, Refusals) {
  const auto message = [](const char* json) {
    const auto got = GenerationConfig::parse(json, model());
    return got.ok() ? "" : got.error().message();
  };
  EXPECT_THAT(message(R"({"temperature": -1})"), HasSubstr("temperature must be a number from 0"));
  EXPECT_THAT(message(R"({"temperature": "1"})"), HasSubstr("is \"1\""));
  EXPECT_THAT(message(R"({"top_p": 0})"), HasSubstr("top_p must be greater than 0"));
  EXPECT_THAT(message(R"({"top_p": 1.5})"), HasSubstr("top_p must be"));
  EXPECT_THAT(message(R"({"eos_token_id": 129280})"), HasSubstr("eos_token_id must be"));
  EXPECT_THAT(message(R"({"eos_token_id": ["a"]})"), HasSubstr("eos_token_id must hold"));
  EXPECT_THAT(message(R"({"do_sample": 1})"), HasSubstr("do_sample must be true or false"));
  EXPECT_THAT(message("no"), HasSubstr("not valid JSON"));
}

TEST(GenerationConfig, LoadNamesTheFile) {
  const test::TempDir dir;
  std::ofstream(dir.path() / "generation_config.json") << "{";
  EXPECT_THAT(GenerationConfig::load(dir.path(), model()).error().message(),
              HasSubstr("generation_config.json: not valid JSON"));
}

}  // namespace
}  // namespace stoker
