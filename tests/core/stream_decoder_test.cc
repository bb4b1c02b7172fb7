#include "core/text/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/text/utf8.h"

namespace stoker {
namespace {

class StreamDecoderTest : public testing::Test {
 protected:
  TokenId byte(int value) const {
    const char c = static_cast<char>(value);
    return tokenizer_.find(std::string_view(&c, 1)).value();
  }

  const Tokenizer tokenizer_ =
      Tokenizer::load(STOKER_SOURCE_DIR "/tests/data/small_tokenizer.json").value();
};

TEST_F(StreamDecoderTest, HoldsBackUntilComplete) {
  StreamDecoder decoder(tokenizer_);
  EXPECT_EQ(decoder.push(byte('a')), "a");
  EXPECT_EQ(decoder.push(byte(0xE2)), "");
  EXPECT_EQ(decoder.push(byte(0x82)), "");
  EXPECT_EQ(decoder.push(byte(0xAC)), "€");
  EXPECT_EQ(decoder.flush(), "");
}

TEST_F(StreamDecoderTest, GivesUpWhenASequenceCannotBeCompleted) {
  StreamDecoder decoder(tokenizer_);
  EXPECT_EQ(decoder.push(byte(0xF0)), "");
  EXPECT_EQ(decoder.push(byte(0x9F)), "");
  EXPECT_EQ(decoder.push(byte('x')), "\uFFFDx");
  EXPECT_EQ(decoder.push(byte(0xE2)), "");
  EXPECT_EQ(decoder.flush(), "\uFFFD");
  EXPECT_EQ(decoder.flush(), "");
}

TEST_F(StreamDecoderTest, SkipsSpecialTokensOnlyWhenTold) {
  const TokenId dsml = tokenizer_.find("｜DSML｜").value();
  StreamDecoder keep(tokenizer_), skip(tokenizer_, SpecialTokens::kSkip);
  EXPECT_EQ(keep.push(dsml), "｜DSML｜");
  EXPECT_EQ(skip.push(dsml), "");
  EXPECT_EQ(skip.push(tokenizer_.find("<think>").value()), "<think>");
}

TEST_F(StreamDecoderTest, TogetherItIsDecode) {
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    std::vector<TokenId> tokens;
    for (int i = 0; i < 40; ++i) {
      tokens.push_back(static_cast<TokenId>(random() % (tokenizer_.vocab_size() + 5)) - 2);
    }
    StreamDecoder decoder(tokenizer_);
    std::string text;
    for (const TokenId id : tokens) {
      const std::string part = decoder.push(id);
      ASSERT_EQ(valid_utf8_prefix(part), part.size());
      text += part;
    }
    text += decoder.flush();
    ASSERT_EQ(text, tokenizer_.decode(tokens));
  }
}

}  // namespace
}  // namespace stoker
