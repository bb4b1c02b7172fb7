// The token loop, its JSON, and answers as a terminal or a pipe sees them.
#include "tools/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cpu/reference_backend.h"
#include "tests/support/byte_tokenizer.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"
#include "tests/tools/scripted_tokens.h"
#include "tools/answer_view.h"
#include "tools/generation_json.h"
#include "tools/standard_io.h"
#include "tools/tokenize.h"

namespace stoker::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr TokenId kEos[] = {test::kByteEos};

class GenerationTest : public testing::Test {
 protected:
  GenerationRequest request(const std::string& prompt) const {
    GenerationRequest request;
    request.prompt = tokenizer_.encode(prompt);
    request.eos = kEos;
    request.parse = StreamStart::kContent;
    return request;
  }

  const Tokenizer tokenizer_ = Tokenizer::parse(test::byte_tokenizer_json(), "test").value();
};

TEST_F(GenerationTest, EndsWithEosWhichIsATokenButNoText) {
  test::ScriptedTokens source(tokenizer_);
  source.add_answer("Grüße");
  const Generation generation = generate(source, tokenizer_, request("x")).value();
  EXPECT_EQ(generation.message.content, "Grüße");
  EXPECT_EQ(generation.tokens.size(), 8u);
  EXPECT_EQ(generation.tokens.back(), test::kByteEos);
  EXPECT_EQ(generation.finish, FinishReason::kStop);
  EXPECT_EQ(generation.counts.decode_tokens, 7);
}

TEST_F(GenerationTest, StopsAtTheLimitWithoutHalfACharacter) {
  test::ScriptedTokens source(tokenizer_);
  source.add_answer("Grüße");
  GenerationRequest limited = request("x");
  limited.max_tokens = 3;
  std::string streamed;
  GenerationHooks hooks;
  hooks.on_delta = [&](const StreamDelta& delta) {
    streamed += delta.text;
    return Status();
  };
  const Generation generation = generate(source, tokenizer_, std::move(limited), hooks).value();
  EXPECT_EQ(generation.finish, FinishReason::kLength);
  EXPECT_EQ(generation.tokens.size(), 3u);
  EXPECT_EQ(streamed, "Gr\xEF\xBF\xBD");
  EXPECT_EQ(generation.message.content, streamed);
}

TEST_F(GenerationTest, RawTextKeepsMarkers) {
  test::ScriptedTokens source(tokenizer_);
  source.add_answer("a<think>b");
  GenerationRequest raw = request("x");
  raw.parse.reset();
  EXPECT_EQ(generate(source, tokenizer_, std::move(raw)).value().message.content, "a<think>b");
}

TEST_F(GenerationTest, PromptsThatCannotBe) {
  test::ScriptedTokens source(tokenizer_, 4);
  EXPECT_THAT(generate(source, tokenizer_, request("")).error().message(), HasSubstr("empty"));
  EXPECT_EQ(generate(source, tokenizer_, request("hello")).error().message(),
            "the prompt has 5 tokens, the context holds 4; start with a larger --ctx");
}

TEST_F(GenerationTest, ALostOutputEndsIt) {
  test::ScriptedTokens source(tokenizer_);
  source.add_answer("abc");
  GenerationHooks hooks;
  hooks.on_delta = [](const StreamDelta&) { return Status(Error(ErrorCode::kIo, "disk full")); };
  EXPECT_EQ(generate(source, tokenizer_, request("x"), hooks).error().message(), "disk full");
}

TEST_F(GenerationTest, JsonShape) {
  test::ScriptedTokens source(tokenizer_);
  source.add_answer("hm</think>ok");
  GenerationRequest thinking = request("x");
  thinking.parse = StreamStart::kReasoning;
  const Generation generation = generate(source, tokenizer_, std::move(thinking)).value();
  const JsonValue json = generation_to_json(generation, 0.5, "fast");
  std::vector<std::string> keys;
  for (const auto& [key, value] : *json.if_object()) keys.push_back(key);
  EXPECT_THAT(keys, ElementsAre("text", "reasoning_content", "tool_calls", "prompt_tokens",
                                "tokens", "finish_reason", "timings", "counters"));
  keys.clear();
  for (const auto& [key, value] : *json.find("timings")->if_object()) keys.push_back(key);
  EXPECT_THAT(keys,
              ElementsAre("load_s", "prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"));
  EXPECT_EQ(*json.find("counters")->find("expert_arithmetic")->if_string(), "fast");
  EXPECT_EQ(*json.find("text")->if_string(), "ok");
  EXPECT_EQ(*json.find("reasoning_content")->if_string(), "hm");
  EXPECT_EQ(*json.find("finish_reason")->if_string(), "stop");
  EXPECT_TRUE(is_json(to_json_text(json)));
}

TEST_F(GenerationTest, ARealModelReusesItsCacheOverTurns) {
  const std::string config =
      test::with_field(test::tiny_config(), "vocab_size", std::to_string(test::kByteVocabSize));
  test::TinyEngine engine(config, std::make_unique<ReferenceBackend>());
  SamplerOptions greedy;
  greedy.temperature = 0.0f;
  SessionTokens source(engine.runner(), greedy);
  GenerationRequest first = request("hello");
  first.max_tokens = 4;
  const Generation answer = generate(source, tokenizer_, std::move(first)).value();
  GenerationRequest second = request("hello");
  second.prompt.insert(second.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  second.prompt.push_back(test::kByteEos);
  second.max_tokens = 2;
  const Generation again = generate(source, tokenizer_, second).value();
  EXPECT_EQ(again.counts.cached_tokens, 8);  // all but the last sampled token, which was never fed
  EXPECT_EQ(again.counts.prefill_tokens, 2);

  SessionTokens fresh(engine.runner(), greedy);
  EXPECT_EQ(generate(fresh, tokenizer_, second).value().tokens, again.tokens);
}

class AnswerViewTest : public testing::Test {
 protected:
  std::string shown(bool terminal, const std::vector<StreamDelta>& deltas) {
    std::string out;
    AnswerView view(terminal, [&](std::string_view text) {
      out += text;
      return Status();
    });
    for (const StreamDelta& delta : deltas) EXPECT_TRUE(view.show(delta).ok());
    EXPECT_TRUE(view.end().ok());
    return out;
  }
  using Kind = StreamDelta::Kind;
};

TEST_F(AnswerViewTest, APipeGetsContentAndCalls) {
  EXPECT_EQ(shown(false, {{Kind::kReasoning, -1, "hm"},
                          {Kind::kContent, -1, "Wait."},
                          {Kind::kToolBegin, 0, "f"},
                          {Kind::kToolArguments, 0, "{}"},
                          {Kind::kToolEnd, 0, ""}}),
            "Wait.\n[tool call] f {}\n");
  EXPECT_EQ(shown(false, {}), "\n");
  EXPECT_EQ(shown(false, {{Kind::kContent, -1, "line\n"}}), "line\n");
}

TEST_F(AnswerViewTest, ATerminalGetsDimmedReasoningAndNoControls) {
  EXPECT_EQ(shown(true, {{Kind::kReasoning, -1, "hm"}, {Kind::kContent, -1, "a\033[2Jb\tc\n"}}),
            "\033[2mhm\033[0m\na[2Jb\tc\n");
}

TEST(WithoutControls, LeavesTextAlone) {
  EXPECT_EQ(without_controls("Grüße\t\u4f60\n"), "Grüße\t\u4f60\n");
  EXPECT_EQ(without_controls("a\x07\x7f\xc2\x9b"
                             "b\r"),
            "ab");
}

TEST(TokenizeLine, AnswersEveryLine) {
  const Tokenizer tokenizer = Tokenizer::parse(test::byte_tokenizer_json(), "test").value();
  EXPECT_EQ(tokenize_line(tokenizer, R"("ab<think>")", false), "[113, 114, 4]");
  EXPECT_EQ(tokenize_line(tokenizer, R"("")", false), "[]");
  EXPECT_EQ(tokenize_line(tokenizer, "[0, 113, 4]", true), R"("<｜begin▁of▁sentence｜>a<think>")");
  EXPECT_EQ(tokenize_line(tokenizer, "[]", true), R"("")");
  for (const char* bad : {"", "x", "[1]", "\"\xff\"", "\"a"}) {
    EXPECT_THAT(tokenize_line(tokenizer, bad, false), HasSubstr("{\"error\": \"")) << bad;
  }
  for (const char* bad : {"\"a\"", "[1.0]", "[-1]", "[9999999999]", "[\"a\"]", "[1"}) {
    EXPECT_THAT(tokenize_line(tokenizer, bad, true), HasSubstr("{\"error\": \"")) << bad;
  }
}

}  // namespace
}  // namespace stoker::tools
