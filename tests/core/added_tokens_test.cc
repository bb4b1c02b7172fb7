#include "core/text/added_tokens.h"

#include <gtest/gtest.h>

namespace stoker {
namespace {

TEST(AddedTokens, LeftmostThenLongest) {
  AddedTokens added;
  added.add("<a>", 1);
  added.add("<a><b>", 2);
  added.add("b><c", 3);
  const auto expect = [&](std::string_view text, std::size_t from, std::size_t begin,
                          std::size_t end, TokenId id) {
    const auto match = added.find(text, from);
    ASSERT_TRUE(match.has_value());
    EXPECT_EQ(match->begin, begin);
    EXPECT_EQ(match->end, end);
    EXPECT_EQ(match->id, id);
  };
  expect("x<a>", 0, 1, 4, 1);
  expect("<a><b><c", 0, 0, 6, 2);
  expect("<a><b", 0, 0, 3, 1);
  expect("<a><b><c", 1, 4, 8, 3);
  expect("<<a>", 0, 1, 4, 1);
  EXPECT_FALSE(added.find("<a", 0));
  EXPECT_FALSE(added.find("<a>", 3));
  EXPECT_FALSE(AddedTokens().find("anything", 0));
}

}  // namespace
}  // namespace stoker
