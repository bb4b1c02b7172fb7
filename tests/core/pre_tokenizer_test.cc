#include "core/text/pre_tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/text/split_pattern.h"

namespace stoker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Engine = PreTokenizer::Engine;

std::vector<std::string> pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  pre_tokenizer.split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

// Both engines must agree; returns what they agree on.
std::vector<std::string> split(const std::vector<std::string>& patterns, std::string_view text) {
  auto jit = PreTokenizer::create(patterns);
  auto interpreter = PreTokenizer::create(patterns, Engine::kInterpreter);
  EXPECT_TRUE(jit.ok() && interpreter.ok());
  EXPECT_EQ(interpreter->engine(), Engine::kInterpreter);
  const std::vector<std::string> pieces = pieces_of(*jit, text);
  EXPECT_EQ(pieces_of(*interpreter, text), pieces);
  std::string together;
  for (const std::string& piece : pieces) {
    EXPECT_FALSE(piece.empty());
    together += piece;
  }
  EXPECT_EQ(together, text);
  return pieces;
}

TEST(PreTokenizer, KeepsMatchesAndWhatIsBetween) {
  EXPECT_THAT(split({R"(\p{N}{1,3})"}, "a1234b"), ElementsAre("a", "123", "4", "b"));
  EXPECT_THAT(split({}, "all of it"), ElementsAre("all of it"));
  EXPECT_THAT(split({"x"}, ""), ElementsAre());
}

TEST(PreTokenizer, EachPatternSeesOnePieceAtATime) {
  // The second pattern's lookahead does not see the digit behind the space.
  EXPECT_THAT(split({R"(\p{N}+)", R"(\s+(?!\S)|\s+)"}, "a  1"), ElementsAre("a", "  ", "1"));
  EXPECT_THAT(split({R"(\s+(?!\S)|\s+)"}, "a  1"), ElementsAre("a", " ", " ", "1"));
}

TEST(PreTokenizer, AnEmptyMatchCutsAndMovesOn) {
  EXPECT_THAT(split({"x*"}, "axxé"), ElementsAre("a", "xx", "é"));
  EXPECT_THAT(split({"(?=b)"}, "abab"), ElementsAre("a", "ba", "b"));
}

TEST(PreTokenizer, WhiteSpaceIsTheUnicodeProperty) {
  EXPECT_THAT(
      split({R"(\s+)"},
            "a\t\n\v\f\r \u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000z"),
      ElementsAre("a", "\t\n\v\f\r \u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000",
                  "z"));
  for (const std::string other : {"\u180E", "\u200B", "\uFEFF", "\x1C"}) {
    const std::string behind_letter = fmt::format("a{}", other);
    const std::string behind_space = fmt::format(" {}", other);
    EXPECT_THAT(split({R"(\s+)"}, behind_letter), ElementsAre(behind_letter));
    EXPECT_THAT(split({R"(\S+)"}, behind_space), ElementsAre(" ", other));
    EXPECT_THAT(split({R"([^\s]+)"}, behind_space), ElementsAre(" ", other));
  }
}

TEST(PreTokenizer, ARunawayPatternLeavesTheRestWhole) {
  const std::string text = std::string(3000, 'a') + "b";
  auto pre_tokenizer = PreTokenizer::create({"(?:a+)+c"});
  ASSERT_TRUE(pre_tokenizer.ok());
  EXPECT_THAT(pieces_of(*pre_tokenizer, text), ElementsAre(text));
}

TEST(PreTokenizer, DeepRecursionFallsBackFromTheJitStack) {
  // One stack frame per repetition: more than the default stack, then more than the largest.
  for (const std::size_t n : {std::size_t{20'000}, std::size_t{2'000'000}}) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i) text += "ab";
    auto pre_tokenizer = PreTokenizer::create({"(?:(a)|b)+"});
    ASSERT_TRUE(pre_tokenizer.ok());
    std::size_t num_bytes = 0;
    pre_tokenizer->split(text, [&](std::string_view piece) { num_bytes += piece.size(); });
    EXPECT_EQ(num_bytes, text.size());
  }
}

TEST(SplitPattern, PassesWhatBothDialectsReadAlike) {
  for (const std::string pattern : {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+",
                                    R"([!-/:;\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*)",
                                    R"((?i:'s|'t)|(?<=a)b|(?<!a)b++|a{2}|a{2,}?)"}) {
    auto translated = to_pcre2_pattern(pattern);
    ASSERT_TRUE(translated.ok()) << translated.error().message();
    EXPECT_EQ(*translated, pattern);
  }
}

TEST(SplitPattern, RefusesWhatWouldSplitDifferently) {
  for (const std::string pattern : {"[a&&b]",
                                    "[a[bc]]",
                                    "[[:alpha:]]",
                                    R"(\p{Han})",
                                    R"(\p{sc:Han})",
                                    R"(\p{^L})",
                                    R"(\w+)",
                                    R"(\bx)",
                                    R"(\h)",
                                    R"(\R)",
                                    R"(\X)",
                                    R"(a\Kb)",
                                    R"((a)\1)",
                                    R"(\x41)",
                                    "^a",
                                    "a$",
                                    "a.b",
                                    "(*UTF)a",
                                    "(*LIMIT_MATCH=1)a",
                                    "(?#a)",
                                    "(?C1)a",
                                    "(?R)",
                                    "(?m)a",
                                    "(?>a)",
                                    "(?<n>a)",
                                    R"([\S])",
                                    "a{1,3}+",
                                    "a{,3}",
                                    "a{",
                                    "[]a]",
                                    "[a",
                                    "[",
                                    "[^",
                                    R"(\)",
                                    R"(\p)",
                                    R"(\p{L)"}) {
    auto translated = to_pcre2_pattern(pattern);
    ASSERT_FALSE(translated.ok()) << pattern;
    EXPECT_EQ(translated.error().code(), ErrorCode::kUnsupported);
  }
}

TEST(SplitPattern, ABadPatternIsNamed) {
  auto pre_tokenizer = PreTokenizer::create({"a", "(b"});
  ASSERT_FALSE(pre_tokenizer.ok());
  EXPECT_THAT(pre_tokenizer.error().message(),
              HasSubstr("pre_tokenizer.pretokenizers[1].pattern.Regex: PCRE2 refuses"));
}

}  // namespace
}  // namespace stoker
