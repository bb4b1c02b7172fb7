#include "core/text/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stoker {
namespace {

std::string round_trip(std::string_view text) {
  const Result<JsonValue> value = parse_json(text);
  return value.ok() ? to_json_text(*value) : value.error().message();
}

// What Python's json.dumps(json.loads(text), ensure_ascii=False) prints.
TEST(JsonText, PrintsNumbersAsPythonDoes) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"1", "1"},
      {"-0", "0"},
      {"1.0", "1.0"},
      {"-0.0", "-0.0"},
      {"1e3", "1000.0"},
      {"1E+2", "100.0"},
      {"0.1", "0.1"},
      {"0.30000000000000004", "0.30000000000000004"},
      {"1e15", "1000000000000000.0"},
      {"9999999999999998.0", "9999999999999998.0"},
      {"1e16", "1e+16"},
      {"12345678901234567.0", "1.2345678901234568e+16"},
      {"1e22", "1e+22"},
      {"1e23", "1e+23"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"1.5e-7", "1.5e-07"},
      {"5e-324", "5e-324"},
      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"1e400", "Infinity"},
      {"-1e400", "-Infinity"},
      {"1e-400", "0.0"},
      {"-0.0000000001e-400", "-0.0"},
      {"0e999999999999999999999", "0.0"},
      {"NaN", "NaN"},
      {"Infinity", "Infinity"},
      {"-Infinity", "-Infinity"},
      {"18446744073709551616", "18446744073709551616"},
      {"-123456789012345678901234567890", "-123456789012345678901234567890"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(round_trip(text), expected) << text;
  const std::string huge(400, '7');
  EXPECT_EQ(round_trip(huge), huge);
}

TEST(JsonText, PrintsStringsAsPythonDoes) {
  EXPECT_EQ(round_trip(R"("\u4f60\ud83d\ude00 é /\/ \" \\ \n\r\t\b\f\u001f")"),
            "\"你😀 é // \\\" \\\\ \\n\\r\\t\\b\\f\\u001f\"");
  EXPECT_EQ(round_trip("\"\\u0000\x7f\""), "\"\\u0000\x7f\"");
}

TEST(JsonText, KeepsOrderAndPythonsRuleForDuplicateKeys) {
  EXPECT_EQ(round_trip(R"( {"b":1,"a":[true,false,null,{}],"c":[],"b":{"x":2}} )"),
            R"({"b": {"x": 2}, "a": [true, false, null, {}], "c": []})");
}

TEST(JsonText, Refuses) {
  for (const std::string_view text : {"",
                                      " ",
                                      "{",
                                      "[",
                                      "\"",
                                      "[1,]",
                                      "{\"a\":1,}",
                                      "{a:1}",
                                      "{\"a\" 1}",
                                      "01",
                                      "1.",
                                      ".5",
                                      "+1",
                                      "1e",
                                      "-",
                                      "tru",
                                      "nan",
                                      "'a'",
                                      "1 2",
                                      "[1}",
                                      "\"\n\"",
                                      "\"\\x\"",
                                      "\"\\u12g4\"",
                                      "\"\\ud800\"",
                                      "\"\\udc00\"",
                                      "\"\\ud800\\u0041\"",
                                      "\"\\u12",
                                      "\"\xff\"",
                                      "\"\xc0\x80\"",
                                      "\"\xed\xa0\x80\"",
                                      "\"\xf4\x90\x80\x80\"",
                                      "\"\xe4\xbd\""}) {
    EXPECT_FALSE(parse_json(text).ok()) << text;
  }
}

TEST(JsonText, HasLimits) {
  const std::string deep(100'000, '[');
  EXPECT_THAT(parse_json(deep).error().message(), ::testing::HasSubstr("nested too deeply"));
  const std::string within = std::string(256, '[') + "1" + std::string(256, ']');
  EXPECT_TRUE(parse_json(within).ok());
  EXPECT_FALSE(parse_json(fmt::format("[{}]", within)).ok());
  EXPECT_THAT(parse_json("[1, 2]", {.max_bytes = 5}).error().message(),
              ::testing::HasSubstr("at most 5"));
}

TEST(JsonText, TruthIsPythons) {
  for (const std::string_view text : {"null", "false", "0", "0.0", "\"\"", "[]", "{}"}) {
    EXPECT_FALSE(parse_json(text)->is_truthy()) << text;
  }
  for (const std::string_view text : {"true", "1", "0.5", "NaN", "\"0\"", "[0]", "{\"a\":null}"}) {
    EXPECT_TRUE(parse_json(text)->is_truthy()) << text;
  }
}

}  // namespace
}  // namespace stoker
