#include "core/text/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/text/render_case.h"
#include "tests/core/chat_golden.h"

namespace stoker {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::unique_ptr<ChatFormat> format(std::string_view name) {
  Result<std::unique_ptr<ChatFormat>> made = make_chat_format(name);
  return std::move(made).value();
}

std::string render(std::string_view name, std::string_view json) {
  return render_case_line(*format(name), json, /*parse=*/false);
}

std::string parse(std::string_view name, std::string_view json) {
  return render_case_line(*format(name), json, /*parse=*/true);
}

// The prompt of an accepted case; the whole line of a refused one.
std::string prompt(std::string_view name, std::string_view json) {
  const std::string line = render(name, json);
  const JsonValue value = parse_json(line).value();
  const JsonValue* text = value.find("prompt");
  return text != nullptr ? *text->if_string() : line;
}

TEST(ChatGolden, RendersAndParsesAsPublished) {
  const std::vector<GoldenCase> cases = load_golden_cases();
  if (cases.empty()) GTEST_SKIP() << "no golden/chat_encoding.jsonl: STOKER_SHARED_DIR is not set";
  const auto v32 = format("v3.2");
  for (const GoldenCase& item : cases) {
    SCOPED_TRACE(item.id);
    const bool parses = item.kind.starts_with("parse");
    const std::string line = render_case_line(*v32, item.line, parses);
    const JsonValue result = parse_json(line).value();
    if (item.kind.ends_with("_error")) {
      EXPECT_NE(result.find("error"), nullptr) << line;
      continue;
    }
    const char* field = parses ? "message" : "prompt";
    ASSERT_NE(result.find(field), nullptr) << line;
    EXPECT_EQ(to_json_text(*result.find(field)), to_json_text(*item.json.find(field)));
  }
}

TEST(ChatFormatV32, OneTurn) {
  EXPECT_EQ(
      prompt("v3.2", R"({"thinking_mode":"chat","messages":[{"role":"user","content":"hi"}]})"),
      "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜></think>");
  EXPECT_EQ(
      prompt("v3.2", R"({"thinking_mode":"thinking","messages":[{"role":"user","content":"hi"}]})"),
      "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>");
}

TEST(ChatFormatV32, ReasoningIsKeptOnlyInTheCurrentTurn) {
  EXPECT_EQ(prompt("v3.2", R"({"thinking_mode":"thinking","messages":[
      {"role":"user","content":"a"},
      {"role":"assistant","content":"b","reasoning_content":"old"},
      {"role":"user","content":"c"},
      {"role":"assistant","content":null,"reasoning_content":"new",
       "tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","content":"1"}]})"),
            "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜>"
            "<｜User｜>c<｜Assistant｜><think>new</think>\n\n<｜DSML｜function_calls>\n"
            "<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>"
            "<｜end▁of▁sentence｜>\n\n<function_results>\n<result>1</result>\n"
            "</function_results>\n\n<think>");
}

TEST(ChatFormatV32, ToolTextKeepsItsBlankLines) {
  const std::string text = prompt("v3.2", R"({"thinking_mode":"chat","messages":[
      {"role":"system","content":"S","tools":[
        {"type":"function","function":{"name":"f","n":1e3,"strict":true}},
        {"type":"function","function":{"name":"g","n":1}}]},
      {"role":"user","content":"u"}]})");
  EXPECT_THAT(
      text, StartsWith("<｜begin▁of▁sentence｜>S\n\n## Tools\n\nYou have access to a set of tools "
                       "you can use to answer the user's question.\nYou can invoke functions by "
                       "writing a \"<｜DSML｜function_calls>\" block like the following as part of "
                       "your reply to the user:\n<｜DSML｜function_calls>\n"));
  EXPECT_THAT(text, HasSubstr("</｜DSML｜function_calls>\n\nString and scalar parameters should be "
                              "specified as is without any escaping or quotes, while lists"));
  EXPECT_THAT(text, HasSubstr("arrays, objects).\n\nIf the thinking_mode is enabled, then after "));
  EXPECT_THAT(text,
              HasSubstr("Here is an example:\n\n<｜DSML｜function_calls>\n...\n"
                        "</｜DSML｜function_calls>\n\n<function_results>\n...\n"
                        "</function_results>\n\n<think>...thinking about results</think>\n\n"));
  EXPECT_THAT(
      text,
      EndsWith("Here are the functions available in JSONSchema format:\n<functions>\n"
               "{\"name\": \"f\", \"n\": 1000.0, \"strict\": true}\n"
               "{\"name\": \"g\", \"n\": 1}\n</functions>\n<｜User｜>u<｜Assistant｜></think>"));
}

TEST(ChatFormatV32, ResponseFormatAndDeveloper) {
  EXPECT_EQ(
      prompt("v3.2", R"({"thinking_mode":"thinking","add_default_bos_token":false,"messages":[
      {"role":"developer","content":"d","response_format":{"a":[]}}]})"),
      "<｜User｜>\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
      "reply:\n{\"a\": []}\n\n# The user's message is: d<｜Assistant｜><think>");
}

TEST(ChatFormatV32, ArgumentsAreSpelledAsJsonDumpsDoes) {
  const std::string text = prompt("v3.2", R"({"thinking_mode":"chat","messages":[
      {"role":"user","content":"u"},{"role":"assistant","tool_calls":[{"function":{"name":"f",
       "arguments":"{\"a\":1e3,\"b\":\"x\\ny\",\"a\":[1.0,{\"k\":null}]}"}}]}]})");
  EXPECT_THAT(
      text,
      HasSubstr("name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"false\">[1.0, {\"k\": null}]"
                "</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"true\">x\ny"
                "</｜DSML｜parameter>\n</｜DSML｜invoke>"));
}

TEST(ChatFormatV32, ContextSetsTheStateAndIsNotPrinted) {
  EXPECT_EQ(prompt("v3.2", R"({"thinking_mode":"thinking","context":[{"role":"user","content":"u"},
      {"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}},
                                        {"function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","content":"1"}],"messages":[{"role":"tool","content":"2"}]})"),
            "\n<result>2</result>\n</function_results>\n\n<think>");
}

TEST(ChatFormatV32, OpenResultBlockStaysOpen) {
  EXPECT_THAT(prompt("v3.2", R"({"thinking_mode":"chat","messages":[
      {"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}},
                                        {"function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","content":"1"}]})"),
              EndsWith("\n\n<function_results>\n<result>1</result>"));
}

TEST(ChatFormatV32, RefusalsNameTheField) {
  const auto error = [](std::string_view json) { return render("v3.2", json); };
  EXPECT_THAT(error("{"), HasSubstr("invalid JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(error(R"({"messages":[]})"), HasSubstr("thinking_mode: missing"));
  EXPECT_THAT(error(R"({"thinking_mode":"x","messages":[]})"), HasSubstr("thinking_mode"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat"})"), HasSubstr("messages: missing"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"user","content":5}]})"),
              HasSubstr("messages[0].content: expected a string, found a number"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"content":"x"}]})"),
              HasSubstr("messages[0].role: missing"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"robot"}]})"),
              HasSubstr("messages[0].role: unknown role"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"user","tools":{}}]})"),
              HasSubstr("messages[0].tools: expected an array, found an object"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"assistant",
                  "tool_calls":[{"function":{"name":"f","arguments":{}}}]}]})"),
              HasSubstr("messages[0].tool_calls[0].function.arguments: expected a string"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"assistant",
                  "tool_calls":[{"function":{"name":"f","arguments":"[]"}}]}]})"),
              HasSubstr("messages[0]: tool_calls[0]: function.arguments: expected a JSON object"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","drop_thinking":1,"messages":[]})"),
              HasSubstr("drop_thinking: expected a boolean"));
  EXPECT_THAT(error(R"({"thinking_mode":"chat","messages":[{"role":"tool","content":"x"}]})"),
              HasSubstr("without an assistant message"));
}

TEST(ChatFormatV32, ParsesCallsStrictly) {
  const auto answer = [](std::string_view completion) {
    std::string line = R"({"thinking_mode":"chat","completion":)";
    append_json_string(line, completion);
    return parse("v3.2", line + "}");
  };
  const std::string head = "t\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n";
  const std::string tail = "</｜DSML｜invoke>\n</｜DSML｜function_calls>";
  const std::string a = "<｜DSML｜parameter name=\"a\" string=\"false\">1</｜DSML｜parameter>\n";
  const std::string f_of =
      R"({"message": {"role": "assistant", "content": "t", "reasoning_content": "", )"
      R"("tool_calls": [{"type": "function", "function": {"name": "f", "arguments": )";
  EXPECT_EQ(answer(head + tail), f_of + R"("{}"}}]}})");
  EXPECT_EQ(answer(head + "\n" + tail + "<｜end▁of▁sentence｜>"), f_of + R"("{}"}}]}})");
  EXPECT_EQ(answer(head + a + tail), f_of + R"("{\"a\": 1}"}}]}})");

  EXPECT_THAT(answer(head + a + a + tail), HasSubstr("appears twice"));
  EXPECT_THAT(answer(head + "\n\n" + tail), HasSubstr("error"));
  EXPECT_THAT(answer(head + a), HasSubstr("error"));
  EXPECT_THAT(answer(head + a + tail + "\n"), HasSubstr("error"));
  EXPECT_THAT(answer(head + tail + "<｜end▁of▁sentence｜>x"), HasSubstr("error"));
  EXPECT_THAT(answer("no end"), HasSubstr("error"));
  EXPECT_THAT(answer("a <｜DSML｜ b<｜end▁of▁sentence｜>"), HasSubstr("error"));
}

TEST(ChatFormatPlain, PromptsOfTheEarlierFormats) {
  const std::string chat = R"({"thinking_mode":"chat","messages":[{"role":"system","content":"S"},
      {"role":"user","content":"a"},{"role":"assistant","content":"r</think>b"},
      {"role":"user","content":"c"}]})";
  std::string thinking = chat;
  thinking.replace(thinking.find("chat"), 4, "thinking");
  const std::string start = "<｜begin▁of▁sentence｜>S<｜User｜>a<｜Assistant｜>";
  const std::string end = "b<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>";
  EXPECT_EQ(prompt("v3.1", chat), start + "</think>" + end + "</think>");
  EXPECT_EQ(prompt("v3.1", thinking), start + "</think>" + end + "<think>");
  EXPECT_EQ(prompt("r1", chat), start + end);
  EXPECT_EQ(prompt("r1", thinking), start + end + "<think>\n");
  EXPECT_EQ(prompt("v3", chat), start + end);
  EXPECT_THAT(prompt("v3", thinking), HasSubstr("no thinking mode"));
}

TEST(ChatFormatPlain, ToolsNeedV32) {
  for (const char* name : {"v3.1", "r1", "v3"}) {
    SCOPED_TRACE(name);
    EXPECT_THAT(render(name, R"({"thinking_mode":"chat","messages":[{"role":"system","tools":[
                    {"function":{"name":"f"}}]},{"role":"user","content":"u"}]})"),
                HasSubstr("messages[0]: tools need the chat format v3.2"));
    EXPECT_THAT(
        render(name, R"({"thinking_mode":"chat","messages":[{"role":"tool","content":"u"}]})"),
        HasSubstr("tools need the chat format v3.2"));
  }
}

TEST(ChatFormatPlain, ParsesAnswers) {
  const std::string thought =
      R"({"thinking_mode":"thinking","completion":"r</think>a<｜end▁of▁sentence｜>"})";
  EXPECT_THAT(parse("v3.1", thought), HasSubstr(R"("content": "a", "reasoning_content": "r")"));
  EXPECT_THAT(parse("r1", thought), HasSubstr(R"("content": "a", "reasoning_content": "r")"));
  EXPECT_THAT(parse("v3", thought), HasSubstr("error"));
  const std::string own =
      R"({"thinking_mode":"chat","completion":"<think>r</think>a<｜end▁of▁sentence｜>"})";
  EXPECT_THAT(parse("r1", own), HasSubstr(R"("content": "a", "reasoning_content": "r")"));
  EXPECT_THAT(parse("v3.1", own), HasSubstr("error"));
  EXPECT_THAT(parse("v3", R"({"thinking_mode":"chat","completion":"a"})"), HasSubstr("error"));
}

TEST(ChatFormatChoice, FactsDecide) {
  EXPECT_EQ(detect_chat_format({.model_type = "deepseek_v32",
                                .has_dsml_token = true,
                                .has_think_tokens = true,
                                .has_search_tokens = true}),
            "v3.2");
  EXPECT_EQ(detect_chat_format({.model_type = "deepseek_v32", .has_think_tokens = true}), "v3.1");
  EXPECT_EQ(detect_chat_format({.model_type = "deepseek_v3", .scale_fmt = "ue8m0"}), "v3.1");
  EXPECT_EQ(detect_chat_format(
                {.model_type = "deepseek_v3", .has_think_tokens = true, .has_search_tokens = true}),
            "v3.1");
  EXPECT_EQ(detect_chat_format({.model_type = "deepseek_v3", .has_think_tokens = true}), "r1");
  EXPECT_EQ(detect_chat_format({.model_type = "deepseek_v3"}), "v3");
  EXPECT_EQ(make_chat_format("auto", {.has_dsml_token = true}).value()->name(), "v3.2");
  EXPECT_THAT(make_chat_format("v9").error().message(), HasSubstr("unknown chat format \"v9\""));
}

}  // namespace
}  // namespace stoker
