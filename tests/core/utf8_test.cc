#include "core/text/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "core/text/byte_alphabet.h"

namespace stoker {
namespace {

using namespace std::string_literals;

// Each U+FFFD as '?', to be readable.
std::string repaired(std::string_view text) {
  std::string out;
  std::string rest = to_valid_utf8(text);
  while (!rest.empty()) {
    const bool replaced = rest.starts_with(kReplacementCharacter);
    out.push_back(replaced ? '?' : rest[0]);
    rest.erase(0, replaced ? kReplacementCharacter.size() : 1);
  }
  return out;
}

TEST(Utf8, ValidTextStaysAsItIs) {
  for (const std::string& text :
       {""s, "plain ASCII, longer than one word"s, "\0a"s, "é"s, "€"s, "😀"s, "\xED\x9F\xBF"s,
        "\xEE\x80\x80"s, "\xF4\x8F\xBF\xBF"s, "\xC2\x80"s, "\xE0\xA0\x80"s, "\xF0\x90\x80\x80"s}) {
    EXPECT_EQ(valid_utf8_prefix(text), text.size());
    EXPECT_EQ(to_valid_utf8(text), text);
    EXPECT_EQ(incomplete_utf8_suffix(text), 0u);
  }
}

TEST(Utf8, EachMaximalInvalidSubsequenceBecomesOneReplacement) {
  EXPECT_EQ(repaired("a\xFF z"), "a? z");
  EXPECT_EQ(repaired("\x80\x80"), "??");
  EXPECT_EQ(repaired("\xE2\x82"), "?");  // truncated: one
  EXPECT_EQ(repaired("\xE2\x82x"), "?x");
  EXPECT_EQ(repaired("\xF0\x9F\x98 \xF0\x9F"), "? ?");
  EXPECT_EQ(repaired("\xC0\xAF"), "??");            // overlong
  EXPECT_EQ(repaired("\xE0\x80\xAF"), "???");       // overlong
  EXPECT_EQ(repaired("\xED\xA0\x80"), "???");       // surrogate
  EXPECT_EQ(repaired("\xF4\x90\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(repaired("\xE2\xE2\x82\xAC"), "?€");
  // The example of the Unicode standard, table 3-8.
  EXPECT_EQ(repaired("a\xF1\x80\x80\xE1\x80\xC2"s + "b\x80"s + "c\x80\xBF"s + "d"), "a???b?c??d");
}

TEST(Utf8, HoldsBackOnlyWhatMayBeCompleted) {
  EXPECT_EQ(incomplete_utf8_suffix("a\xE2"), 1u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xE2\x82"), 2u);
  EXPECT_EQ(incomplete_utf8_suffix("\xF0\x9F\x98"), 3u);
  EXPECT_EQ(incomplete_utf8_suffix("\xE2\x82\xAC"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xE0\x80"), 0u);  // cannot become valid
  EXPECT_EQ(incomplete_utf8_suffix("\x80\x80\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xC3\xC3"), 1u);
}

TEST(ByteAlphabet, SpellsEveryByteAndBack) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    EXPECT_EQ(spelling_to_bytes(bytes_to_spelling(bytes)), bytes);
  }
  EXPECT_EQ(bytes_to_spelling(" a\n"), "ĠaĊ");
  EXPECT_EQ(spelling_to_bytes("ĠaĊ"), " a\n");
  EXPECT_FALSE(spelling_to_bytes("a b"));  // a space is spelled Ġ
  EXPECT_FALSE(spelling_to_bytes("ń"));    // U+0144, the first behind
  EXPECT_FALSE(spelling_to_bytes("｜"));
}

}  // namespace
}  // namespace stoker
