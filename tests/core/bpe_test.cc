#include "core/text/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>

namespace stoker {
namespace {

using testing::ElementsAre;

std::array<TokenId, 256> identity_bytes() {
  std::array<TokenId, 256> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens[byte] = byte;
  return tokens;
}

Bpe make_bpe(std::vector<Merge> merges) {
  return Bpe::create(identity_bytes(), std::move(merges)).value();
}

std::vector<TokenId> encode(const Bpe& bpe, std::string_view piece) {
  Bpe::Scratch scratch;
  std::vector<TokenId> out;
  bpe.encode(piece, scratch, &out);
  return out;
}

// The definition, word for word.
std::vector<TokenId> encode_naively(const std::vector<Merge>& merges, std::string_view piece) {
  std::map<std::pair<TokenId, TokenId>, std::size_t> ranks;
  for (std::size_t i = 0; i < merges.size(); ++i) ranks[{merges[i].left, merges[i].right}] = i;
  std::vector<TokenId> ids;
  for (const char c : piece) ids.push_back(static_cast<std::uint8_t>(c));
  while (true) {
    std::size_t best = merges.size(), place = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = ranks.find({ids[i], ids[i + 1]});
      if (it != ranks.end() && it->second < best) {
        best = it->second;
        place = i;
      }
    }
    if (best == merges.size()) return ids;
    ids[place] = merges[best].merged;
    ids.erase(ids.begin() + place + 1);
  }
}

TEST(Bpe, LowestRankFirstLeftmostOfEquals) {
  const Bpe bpe = make_bpe({{'a', 'a', 300}, {'b', 'c', 301}, {'a', 'b', 302}, {300, 'a', 303}});
  EXPECT_THAT(encode(bpe, ""), ElementsAre());
  EXPECT_THAT(encode(bpe, "x"), ElementsAre('x'));
  EXPECT_THAT(encode(bpe, "aaa"), ElementsAre(303));
  EXPECT_THAT(encode(bpe, "aaaa"), ElementsAre(300, 300));
  EXPECT_THAT(encode(bpe, "abc"), ElementsAre('a', 301));
}

TEST(Bpe, RefusesTwoMergesOfOnePair) {
  auto bpe = Bpe::create(identity_bytes(), {{'a', 'b', 300}, {'b', 'b', 301}, {'a', 'b', 302}});
  ASSERT_FALSE(bpe.ok());
  EXPECT_EQ(bpe.error().message(), "model.merges[2] repeats model.merges[0]");
}

// Short and long pieces take different ways; both must be the definition. The merges come in the
// order training gives them, and shuffled, where a token can be merged before its own parts are.
TEST(Bpe, AgreesWithTheDefinition) {
  std::mt19937 random(5);
  for (int round = 0; round < 100; ++round) {
    const int num_letters = 1 + static_cast<int>(random() % 4);
    std::map<std::string, TokenId> tokens;
    std::vector<std::string> names;
    const auto token = [&](const std::string& name) {
      const auto [it, inserted] = tokens.emplace(name, 256 + static_cast<TokenId>(tokens.size()));
      if (inserted) names.push_back(name);
      return name.size() == 1 ? static_cast<TokenId>(name[0]) : it->second;
    };
    for (int i = 0; i < num_letters; ++i) token(std::string(1, static_cast<char>('a' + i)));
    std::map<std::pair<TokenId, TokenId>, Merge> by_pair;
    std::vector<Merge> merges;
    for (int i = 0; i < 60; ++i) {
      const std::string left = names[random() % names.size()],
                        right = names[random() % names.size()];
      if (left.size() + right.size() > 40) continue;
      const Merge merge{token(left), token(right), token(left + right)};
      if (by_pair.emplace(std::pair(merge.left, merge.right), merge).second)
        merges.push_back(merge);
    }
    if (round % 2 == 1) std::shuffle(merges.begin(), merges.end(), random);
    const Bpe bpe = make_bpe(merges);
    for (const int size : {2, 7, 95, 96, 97, 300, 700}) {
      std::string piece;
      for (int i = 0; i < size; ++i)
        piece.push_back(static_cast<char>('a' + random() % num_letters));
      ASSERT_EQ(encode(bpe, piece), encode_naively(merges, piece)) << round << " " << piece;
    }
  }
}

}  // namespace
}  // namespace stoker
