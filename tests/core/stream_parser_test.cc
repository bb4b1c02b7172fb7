#include "core/text/stream_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <random>

#include "core/text/chat_format.h"
#include "core/text/chat_markers.h"
#include "tests/core/chat_golden.h"
#include "tests/support/streamed_answer.h"

namespace stoker {
namespace {

using test::as_text;
using test::streamed_answer;

using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kContent = StreamStart::kContent;
constexpr auto kReasoning = StreamStart::kReasoning;

// Reads `text` in one piece and in others; all must agree.
ChatMessage read(StreamStart start, std::string_view text) {
  const ChatMessage whole = streamed_answer(start, text, [&] { return text.size(); });
  const std::string expected = as_text(whole);
  EXPECT_EQ(as_text(streamed_answer(start, text, [] { return 1u; })), expected)
      << "byte by byte: " << text;
  std::mt19937 random(17);
  for (int round = 0; round < 20; ++round) {
    const std::size_t most = 1 + random() % 30;
    EXPECT_EQ(as_text(streamed_answer(start, text, [&] { return 1 + random() % most; })), expected)
        << text;
  }
  for (const std::string_view marker : markers::kNeverShown) {
    EXPECT_THAT(whole.content, Not(HasSubstr(std::string(marker)))) << text;
    EXPECT_THAT(whole.reasoning_content, Not(HasSubstr(std::string(marker)))) << text;
  }
  return whole;
}

// Compact form for expectations: reasoning|content|name{...}|name{...}
std::string brief(StreamStart start, std::string_view text) {
  const ChatMessage message = read(start, text);
  std::string out = message.reasoning_content + "|" + message.content;
  for (const ToolCall& call : message.tool_calls) out += "|" + call.name + call.arguments;
  return out;
}

constexpr std::string_view kOpen = "\n\n<｜DSML｜function_calls>\n";
constexpr std::string_view kClose = "</｜DSML｜function_calls>";
constexpr std::string_view kEnd = "<｜end▁of▁sentence｜>";

std::string param(std::string_view key, std::string_view value, bool is_text = true) {
  return fmt::format("<｜DSML｜parameter name=\"{}\" string=\"{}\">{}</｜DSML｜parameter>\n", key,
                     is_text, value);
}

std::string invoke(std::string_view name, std::string_view inside) {
  return fmt::format("<｜DSML｜invoke name=\"{}\">\n{}</｜DSML｜invoke>\n", name, inside);
}

std::string cat(std::initializer_list<std::string_view> parts) {
  std::string out;
  for (const std::string_view part : parts) out += part;
  return out;
}

TEST(StreamStart, LastTagOfThePromptDecides) {
  EXPECT_EQ(stream_start("<｜User｜>q<｜Assistant｜><think>"), kReasoning);
  EXPECT_EQ(stream_start("<｜User｜>q<｜Assistant｜><think>\n"), kReasoning);
  EXPECT_EQ(stream_start("<｜User｜>q<｜Assistant｜></think>"), kContent);
  EXPECT_EQ(stream_start("<｜User｜>what is <think>?<｜Assistant｜>"), kContent);
  EXPECT_EQ(
      stream_start("<｜Assistant｜><think>r</think>\n\n<function_results>\n<result>1</result>\n"
                   "</function_results>\n\n<think>"),
      kReasoning);
  EXPECT_EQ(stream_start("<｜Assistant｜><think>r</think>a"), kContent);
  EXPECT_EQ(stream_start("<think>half a thought"), kReasoning);
  EXPECT_EQ(stream_start(""), kContent);
}

TEST(StreamParser, AgreesWithGolden) {
  const std::vector<GoldenCase> cases = load_golden_cases();
  if (cases.empty()) GTEST_SKIP() << "no golden/chat_encoding.jsonl: STOKER_SHARED_DIR is not set";
  for (const GoldenCase& item : cases) {
    if (item.kind != "parse") continue;
    SCOPED_TRACE(item.id);
    const bool thinks = *item.json.find("thinking_mode")->if_string() == "thinking";
    const ChatMessage message =
        read(thinks ? kReasoning : kContent, *item.json.find("completion")->if_string());
    EXPECT_EQ(as_text(message), to_json_text(*item.json.find("message")));
  }
}

TEST(StreamParser, WellFormed) {
  EXPECT_EQ(brief(kContent, cat({"hi", kEnd})), "|hi");
  EXPECT_EQ(brief(kContent, "hi\n\n"), "|hi\n\n");
  EXPECT_EQ(brief(kReasoning, cat({"r\n\n</think>\na < b\n", kEnd})), "r\n\n|\na < b\n");
  EXPECT_EQ(brief(kReasoning, cat({"r</think>c\n", kOpen, invoke("f", param("a", "x\ny\"")),
                                   invoke("g", "\n"), kClose, kEnd})),
            "r|c\n|f{\"a\": \"x\\ny\\\"\"}|g{}");
  EXPECT_EQ(brief(kContent, cat({kOpen, invoke("f", param("a", "not json", false)), kClose, kEnd})),
            "||f{\"a\": not json}");
  EXPECT_EQ(
      brief(kContent, cat({kOpen, invoke("f", param("a", "<think></｜DSML｜invoke> ")), kClose})),
      "||f{\"a\": \"<think></｜DSML｜invoke> \"}");
}

TEST(StreamParser, BareInvokeWithoutBlock) {
  EXPECT_EQ(brief(kContent, cat({"c\n\n", invoke("f", param("a", "1", false)), kEnd})),
            "|c|f{\"a\": 1}");
}

TEST(StreamParser, UnterminatedBlock) {
  const std::string call = cat({"c", kOpen, "<｜DSML｜invoke name=\"f\">\n", param("a", "v")});
  EXPECT_EQ(brief(kContent, call), "|c|f{\"a\": \"v\"}");
  EXPECT_EQ(brief(kContent, cat({call, "</｜DSML｜invoke>\n", kEnd})), "|c|f{\"a\": \"v\"}");
  EXPECT_EQ(brief(kContent, cat({call, kClose, kEnd})), "|c|f{\"a\": \"v\"}");
  EXPECT_EQ(brief(kContent, cat({call, invoke("g", ""), kClose, kEnd})), "|c|f{\"a\": \"v\"}|g{}");
  EXPECT_EQ(brief(kContent, cat({call, "</｜DSML｜invoke>\nSo we wait.", kEnd})),
            "|cSo we wait.|f{\"a\": \"v\"}");
}

TEST(StreamParser, MarkersOfV31AndV3) {
  EXPECT_EQ(
      brief(kContent, cat({"c<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}"
                           "<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}"
                           "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                           kEnd})),
      "|c|f{\"a\": 1}|g{}");
  EXPECT_EQ(brief(kContent,
                  "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
                  "{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁calls▁end｜>"),
            "||f{\"a\": 1}");
  EXPECT_EQ(brief(kContent, "a<｜tool▁sep｜>b<｜tool▁outputs▁begin｜>"), "|ab");
}

TEST(StreamParser, BlockNameOfV4) {
  EXPECT_EQ(brief(kContent, cat({"c\n\n<｜DSML｜tool_calls>\n", invoke("f", param("a", "v")),
                                 "</｜DSML｜tool_calls>", kEnd})),
            "|c|f{\"a\": \"v\"}");
}

TEST(StreamParser, CallInsideReasoning) {
  EXPECT_EQ(brief(kReasoning, cat({"think", kOpen, invoke("f", "\n"), kClose, kEnd})),
            "think||f{}");
  EXPECT_EQ(brief(kReasoning, cat({"a", kOpen, invoke("f", ""), kClose, "b</think>c", kEnd})),
            "ab|c|f{}");
}

TEST(StreamParser, MissingLineBreaks) {
  EXPECT_EQ(brief(kContent,
                  "c<｜DSML｜function_calls><｜DSML｜invoke name=\"f\"><｜DSML｜parameter "
                  "name=\"a\" string=\"true\">v</｜DSML｜parameter></｜DSML｜invoke>"
                  "</｜DSML｜function_calls>"),
            "|c|f{\"a\": \"v\"}");
}

TEST(StreamParser, WrongAttribute) {
  const auto call = [](std::string_view parameter) {
    return brief(kContent, cat({kOpen, "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter", parameter,
                                "</｜DSML｜parameter>\n</｜DSML｜invoke>\n", kClose, kEnd}));
  };
  EXPECT_EQ(call(" name=\"a\" string=\"yes\">1"), "||f{\"a\": 1}");
  EXPECT_EQ(call(" name=\"a\" string=\"yes\">one"), "||f{\"a\": \"one\"}");
  EXPECT_EQ(call(" name=\"a\">one"), "||f{\"a\": \"one\"}");
  EXPECT_EQ(call(" string=\"true\" name=\"a\">1"), "||f{\"a\": \"1\"}");
  EXPECT_EQ(call(" name='a' string='false'>[1, 2]"), "||f{\"a\": [1, 2]}");
  EXPECT_EQ(call(" nothing>1"), "||f{}");
  EXPECT_EQ(brief(kContent, cat({kOpen, "<｜DSML｜invoke name='f'>\n", param("a", "v"),
                                 "</｜DSML｜invoke>\n", kClose})),
            "||f{\"a\": \"v\"}");
  EXPECT_EQ(brief(kContent, cat({kOpen, invoke("f", "{\"a\": [1]}\n"), kClose})),
            "||f{\"a\": [1]}");
}

TEST(StreamParser, EndInTheMiddle) {
  const std::string whole = cat(
      {"c", kOpen, invoke("f", cat({param("a", "v"), param("b", "[1]", false)})), kClose, kEnd});
  for (std::size_t n = 0; n <= whole.size(); ++n) {
    if ((static_cast<unsigned char>(whole[n]) & 0xC0) == 0x80) continue;  // inside a character
    for (const std::string_view end : {std::string_view(), kEnd}) {
      const ChatMessage message = read(kContent, cat({std::string_view(whole).substr(0, n), end}));
      EXPECT_EQ(message.content.substr(0, 1), n == 0 ? "" : "c");
      for (const ToolCall& call : message.tool_calls) {
        EXPECT_EQ(call.name, "f") << n;
        EXPECT_TRUE(is_json(call.arguments)) << call.arguments;
      }
    }
  }
  EXPECT_EQ(brief(kContent, cat({kOpen,
                                 "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
                                 "string=\"true\">half",
                                 kEnd})),
            "||f{\"a\": \"half\"}");
  EXPECT_EQ(brief(kContent, cat({kOpen,
                                 "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
                                 "string=\"false\">[1, ",
                                 kEnd})),
            "||f{\"a\": \"[1, \"}");
  EXPECT_EQ(brief(kContent, cat({"c", kOpen, "<｜DSML｜invoke name=\"get_wea", kEnd})), "|c");
}

TEST(StreamParser, DuplicateParameterKeepsTheFirst) {
  EXPECT_EQ(brief(kContent,
                  cat({kOpen, invoke("f", cat({param("a", "1"), param("a", "2"), param("b", "3")})),
                       kClose})),
            "||f{\"a\": \"1\", \"b\": \"3\"}");
}

TEST(StreamParser, StrayTags) {
  EXPECT_EQ(brief(kContent, "a</think>b"), "|ab");
  EXPECT_EQ(brief(kContent, "<think>r</think>b"), "r|b");
  EXPECT_EQ(brief(kContent, "\n<think>r</think>b"), "r|\nb");
  EXPECT_EQ(brief(kContent, "a <think> b"), "|a  b");
  EXPECT_EQ(brief(kContent, "a｜DSML｜b<｜DSML｜x>c"), "|abx>c");
  EXPECT_EQ(brief(kContent, "a</｜DSML｜function_calls>b"), "|ab");
  EXPECT_EQ(brief(kContent, cat({"a", kEnd, "never seen"})), "|a");
  EXPECT_EQ(brief(kContent, "a<｜DSML｜inv"), "|a");
  EXPECT_EQ(brief(kContent, "a<｜DS"), "|a<｜DS");
  EXPECT_EQ(brief(kContent, cat({"a\n", param("k", "v"), "b"})), "|ab");
  EXPECT_EQ(brief(kContent, "<thi<think>nk>"), "|<thi nk>");
}

TEST(StreamParser, DeltasComeAsSoonAsTheyAreCertain) {
  StreamParser parser(kReasoning);
  std::vector<StreamDelta> deltas;
  const auto feed = [&](std::string_view piece) {
    deltas.clear();
    parser.feed(piece, deltas);
    std::string kinds;
    for (const StreamDelta& delta : deltas) {
      kinds += fmt::format("{}:{}:{};", static_cast<int>(delta.kind), delta.call_idx, delta.text);
    }
    return kinds;
  };
  EXPECT_EQ(feed("so"), "0:-1:so;");
  EXPECT_EQ(feed(" x <"), "0:-1: x ;");
  EXPECT_EQ(feed("/think>Hi\n"), "1:-1:Hi;");
  EXPECT_EQ(feed("\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<"), "");
  EXPECT_EQ(feed("｜DSML｜parameter"), "2:0:f;");
  EXPECT_EQ(feed(" name=\"a\" string=\"true\">"), "3:0:{\"a\": \";");
  EXPECT_EQ(feed("Os\"lo"), "3:0:Os\\\"lo;");
  EXPECT_EQ(feed("</｜DSML｜parameter"), "3:0:\";");
  EXPECT_EQ(feed(">\n</｜DSML｜invoke>\n"), "3:0:};4:0:;");
  EXPECT_FALSE(parser.saw_end());
  EXPECT_EQ(feed("</｜DSML｜function_calls><｜end▁of▁sentence｜>"), "");
  EXPECT_TRUE(parser.saw_end());
  EXPECT_EQ(parser.num_calls(), 1);
}

TEST(StreamParser, AnUnfinishedCallSaysSo) {
  StreamParser parser(kContent);
  std::vector<StreamDelta> deltas;
  parser.feed(cat({kOpen, invoke("f", ""), "<｜DSML｜invoke name=\"g\">\n", param("a", "1")}),
              deltas);
  parser.finish(deltas);
  std::vector<bool> complete;
  for (const StreamDelta& delta : deltas) {
    if (delta.kind == StreamDelta::Kind::kToolEnd) complete.push_back(delta.complete);
  }
  EXPECT_THAT(complete, ::testing::ElementsAre(true, false));
}

// The language's own words, and parts of them.
std::vector<std::string> words_of_the_language() {
  return {"a",
          "\n",
          "\n\n",
          " ",
          "<",
          ">",
          ">\n",
          "<think>",
          "</think>",
          "<thi",
          "nk>",
          "\"x\"",
          "{\"a\": 1}",
          "<｜DSML｜function_calls",
          "</｜DSML｜function_calls>",
          "<｜DSML｜tool_calls>",
          "<｜DSML｜invoke",
          " name=\"f\">\n",
          "</｜DSML｜invoke",
          "<｜DSML｜parameter",
          " name=\"k\" string=\"true\">",
          " name=\"l\" string=\"false\">",
          "</｜DSML｜parameter",
          "｜DSML｜",
          std::string(kEnd),
          std::string(kOpen),
          "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n",
          param("p", "1"),
          "<｜tool▁call▁begin｜>",
          "<｜tool▁sep｜>",
          "<｜tool▁call▁end｜>",
          "<｜begin▁of▁sentence｜>",
          "</｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>"};
}

std::vector<std::string> well_formed_answer() {
  return {"r",
          "</think>",
          "c",
          "\n\n<｜DSML｜function_calls",
          ">\n",
          "<｜DSML｜invoke",
          " name=\"f\">\n",
          "<｜DSML｜parameter",
          " name=\"a\"",
          " string=\"true\">",
          "v",
          "</｜DSML｜parameter",
          ">\n",
          "<｜DSML｜parameter",
          " name=\"b\"",
          " string=\"false\">",
          "1",
          "</｜DSML｜parameter",
          ">\n",
          "</｜DSML｜invoke",
          ">\n",
          "<｜DSML｜invoke",
          " name=\"g\">\n",
          "</｜DSML｜invoke",
          ">\n",
          "</｜DSML｜function_calls",
          ">",
          std::string(kEnd)};
}

// Of words at random, or well formed but for one that is another or missing.
std::string random_sentence(std::mt19937& random, bool almost_well_formed) {
  static const std::vector<std::string> words = words_of_the_language();
  std::vector<std::string> sentence = words;
  sentence.resize(random() % 12);
  for (std::string& word : sentence) word = words[random() % words.size()];
  if (almost_well_formed) {
    sentence = well_formed_answer();
    const std::size_t at = random() % sentence.size();
    if (random() % 2 == 0) sentence[at] = words[random() % words.size()];
    if (random() % 4 == 0) sentence.erase(sentence.begin() + static_cast<std::ptrdiff_t>(at));
  }
  std::string text;
  for (const std::string& word : sentence) text += word;
  return text;
}

// Sentences over the language's own words: nothing leaks, cuts do not matter, and where the strict
// parser accepts, both agree.
TEST(StreamParser, RandomSentences) {
  const auto v32 = make_chat_format("v3.2").value();
  std::mt19937 random(3);
  int num_accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_sentence(random, round % 2 == 0);
    const bool thinks = random() % 2 == 0;
    const ChatMessage message = read(thinks ? kReasoning : kContent, text);
    const auto strict = v32->parse(text, thinks ? ThinkingMode::kThinking : ThinkingMode::kChat);
    if (!strict.ok() || text.find("<｜tool▁") != std::string::npos) continue;
    ++num_accepted;
    EXPECT_EQ(as_text(message), as_text(*strict)) << text;
  }
  EXPECT_GT(num_accepted, 100);
}

// A quadratic parser would need minutes here.
TEST(StreamParser, IsLinear) {
  const auto repeated = [](std::string_view text, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += text;
    return out;
  };
  const std::string texts[] = {
      repeated("<｜DSML｜invoke name=\"f\">\n", 20'000),
      repeated("<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">",
               10'000),
      repeated("<｜DSML｜parameter name=\"a", 20'000),
      repeated("<", 500'000),
      repeated("\n", 500'000),
      repeated(invoke("f", param("a", "v")), 5'000),
      cat({"<｜DSML｜invoke name=\"f\">\n", "<｜DSML｜parameter name=\"a\" string=\"false\">",
           repeated("1", 500'000)}),
  };
  for (const std::string& text : texts) {
    const std::clock_t start = std::clock();  // of this process: others may be busy, too
    streamed_answer(kContent, text, [] { return 7u; });
    EXPECT_LT(std::clock() - start, 20 * CLOCKS_PER_SEC) << text.substr(0, 60);
  }
}

}  // namespace
}  // namespace stoker
