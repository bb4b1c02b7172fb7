#include "core/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/text/utf8.h"

namespace stoker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const char* const kSmallTokenizer = STOKER_SOURCE_DIR "/tests/data/small_tokenizer.json";
const char* const kSmallCases = STOKER_SOURCE_DIR "/tests/data/small_tokenizer_cases.jsonl";

// Every line {"text", "ids"}: exactly these ids, and the text again from them. Returns how many.
int check_cases(const Tokenizer& tokenizer, const std::string& path) {
  std::ifstream file(path);
  int num_cases = 0;
  for (std::string line; std::getline(file, line); ++num_cases) {
    const auto test_case = nlohmann::json::parse(line);
    const auto text = test_case["text"].get<std::string>();
    const auto ids = test_case["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer.encode(text), ids) << line;
    EXPECT_EQ(tokenizer.decode(ids), text) << line;
  }
  return num_cases;
}

class TokenizerTest : public testing::Test {
 protected:
  TokenId id(std::string_view bytes) const { return tokenizer_.find(bytes).value(); }

  const Tokenizer tokenizer_ = Tokenizer::load(kSmallTokenizer).value();
};

TEST_F(TokenizerTest, AgreesWithTheReferenceOnOurOwnTokenizer) {
  EXPECT_GE(check_cases(tokenizer_, kSmallCases), 40);
}

TEST_F(TokenizerTest, KnowsItsTokens) {
  EXPECT_EQ(tokenizer_.vocab_size(), 691);
  EXPECT_EQ(tokenizer_.bos_id(), 682);
  EXPECT_EQ(tokenizer_.eos_id(), 683);
  EXPECT_EQ(tokenizer_.find("<｜begin▁of▁sentence｜>"), 682);
  EXPECT_TRUE(tokenizer_.is_special(682));
  EXPECT_FALSE(tokenizer_.is_special(id("<think>")));
  EXPECT_EQ(tokenizer_.token_bytes(id(" t")), " t");
  EXPECT_FALSE(tokenizer_.find("no token spells this"));
  EXPECT_FALSE(tokenizer_.find(""));
  for (const TokenId outside : {-1, 691, 1 << 30}) {
    EXPECT_FALSE(tokenizer_.contains(outside));
    EXPECT_FALSE(tokenizer_.is_special(outside));
    EXPECT_EQ(tokenizer_.token_bytes(outside), "");
  }
}

TEST_F(TokenizerTest, AddedTokensInTwoPassesLongestFirst) {
  EXPECT_THAT(tokenizer_.encode("<thinking>"), ElementsAre(id("<thinking>")));
  EXPECT_THAT(tokenizer_.encode("<think><think>"), ElementsAre(id("<think>"), id("<think>")));
  // "<｜User｜DSML｜>": the first pass takes ｜DSML｜, whatever the second would have wanted.
  EXPECT_THAT(tokenizer_.encode("<｜User｜DSML｜>"), testing::Contains(id("｜DSML｜")));
}

TEST_F(TokenizerTest, DecodeKeepsOrSkipsSpecialTokens) {
  const std::vector<TokenId> tokens = {*tokenizer_.bos_id(), id("<think>"), id("a"),
                                       *tokenizer_.eos_id()};
  EXPECT_EQ(tokenizer_.decode(tokens), "<｜begin▁of▁sentence｜><think>a<｜end▁of▁sentence｜>");
  EXPECT_EQ(tokenizer_.decode(tokens, SpecialTokens::kSkip), "<think>a");
  EXPECT_EQ(tokenizer_.decode({}), "");
}

TEST_F(TokenizerTest, InvalidUtf8IsEncodedAsReplacements) {
  for (const std::string& text : {std::string("a\xFF\xFEz"), std::string("\xE2\x82"),
                                  std::string("<th\xC0ink> \xED\xA0\x80 9")}) {
    EXPECT_EQ(tokenizer_.encode(text), tokenizer_.encode(to_valid_utf8(text)));
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), to_valid_utf8(text));
  }
}

TEST_F(TokenizerTest, DecodeReplacesWhatTokensLeaveIncompleteAndIgnoresUnknownIds) {
  EXPECT_EQ(tokenizer_.decode(std::vector<TokenId>{id("\xE2"), id("\x82")}), "\uFFFD");
  EXPECT_EQ(tokenizer_.decode(std::vector<TokenId>{id("\xE2"), id("a"), id("\x82")}),
            "\uFFFDa\uFFFD");
  EXPECT_EQ(tokenizer_.decode(std::vector<TokenId>{-5, id("a"), 1 << 29}), "a");
}

TEST_F(TokenizerTest, ThreadsShareIt) {
  std::string text;
  std::ifstream cases(kSmallCases);
  for (std::string line; std::getline(cases, line);) text += line;
  const std::vector<TokenId> expected = tokenizer_.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> num_equal(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) num_equal[t] += tokenizer_.encode(text) == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_equal, testing::Each(20));
}

TEST(Tokenizer, LoadsADirectoryAndNamesAMissingFile) {
  const std::filesystem::path dir =
      std::filesystem::path(testing::TempDir()) / "stoker_tokenizer_test";
  std::filesystem::create_directories(dir);
  std::filesystem::copy_file(kSmallTokenizer, dir / "tokenizer.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_TRUE(Tokenizer::load(dir.string()).ok());
  std::filesystem::remove_all(dir);
  auto missing = Tokenizer::load(dir.string());
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message(), HasSubstr(dir.string()));
}

TEST(Tokenizer, AgreesWithTheGoldenCases) {
  const std::filesystem::path shared = STOKER_SHARED_DIR;
  if (shared.empty() || !std::filesystem::exists(shared / "tokenizer/tokenizer.json")) {
    GTEST_SKIP() << "STOKER_SHARED_DIR is not set, or has no tokenizer/tokenizer.json";
  }
  auto tokenizer = Tokenizer::load((shared / "tokenizer").string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  EXPECT_GE(check_cases(*tokenizer, (shared / "golden/tokenizer.jsonl").string()), 70);
  EXPECT_EQ(tokenizer->vocab_size(), 128815);
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_THAT(tokenizer->encode("<｜DSML｜function_calls>"),
              ElementsAre(30, 128793, 8701, 4941, 12548, 32));
  // Mongolian vowel separator: not white space.
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\u180E b")), "a\u180E b");
}

}  // namespace
}  // namespace stoker
