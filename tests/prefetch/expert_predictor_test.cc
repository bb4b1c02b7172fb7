#include "prefetch/expert_predictor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/block_source.h"

namespace stoker {
namespace {

using Voter = ExpertPredictor::Voter;

constexpr ExpertLayer kLayers[] = {{1, 32, 4}, {2, 32, 4}, {4, 32, 4}};
constexpr ExpertGrid kGrid{5, 32};

class ExpertPredictorTest : public testing::Test {
 protected:
  // What is there: everybody but these.
  bool would_miss(ExpertId id) const { return absent_.contains(id); }
  void look_ahead(int layer, int lead, std::vector<std::int32_t> experts, int num_rows = 1,
                  int from = 1) {
    const int num_ranked = static_cast<int>(experts.size()) / num_rows;
    predictor_.look_ahead({from, layer, lead, num_rows, num_ranked, experts},
                          [this](ExpertId id) { return would_miss(id); });
  }
  void begin_step(std::vector<TokenId> tokens) {
    predictor_.begin_step(tokens, [this](ExpertId id) { return would_miss(id); });
  }
  void turn(int layer, std::vector<int> experts, bool sweep = false) {
    std::vector<ExpertUse> uses(experts.size());
    for (std::size_t i = 0; i < experts.size(); ++i) uses[i].expert = experts[i];
    predictor_.observe(layer, uses, sweep, [this](ExpertId id) { return would_miss(id); });
  }
  std::vector<int> guessed(int layer) {
    std::vector<int> experts;
    for (const Guess& guess : predictor_.guesses(layer)) experts.push_back(guess.expert);
    return experts;
  }

  test::BlockSource source_{2, 1};
  ExpertShapes shapes_{kLayers, source_, kHost};
  ExpertPredictor predictor_{shapes_, kGrid, 0.2};
  std::set<ExpertId> absent_;
};

TEST_F(ExpertPredictorTest, ATokenThatComesAgainIsExpectedToChooseTheSameInTheFirstLayers) {
  absent_ = {{1, 5}, {1, 6}, {1, 9}, {2, 3}, {4, 4}};
  predictor_.note_choices(1, std::vector<TokenId>{42, 7}, std::vector<std::int32_t>{6, 5, 9, 1});
  predictor_.note_choices(2, std::vector<TokenId>{42}, std::vector<std::int32_t>{3, 8});
  predictor_.note_choices(4, std::vector<TokenId>{42}, std::vector<std::int32_t>{4, 1});
  begin_step({42});
  EXPECT_THAT(guessed(1), testing::ElementsAre(6, 5));
  EXPECT_THAT(guessed(2), testing::ElementsAre(3));  // 8 is there
  EXPECT_TRUE(guessed(4).empty());                   // the gates know better by then
  begin_step({43});
  EXPECT_TRUE(guessed(1).empty());
  begin_step({43, 7});
  EXPECT_THAT(guessed(1), testing::ElementsAre(9));
}

TEST_F(ExpertPredictorTest, WhatATokenChoseLosesItsWorthWhereItIsWrong) {
  absent_ = {{1, 5}, {1, 6}};
  for (int i = 0; i < 200; ++i) {
    begin_step({42});
    predictor_.note_choices(1, std::vector<TokenId>{42}, std::vector<std::int32_t>{5, 6 + i % 2});
    turn(1, {5, 6 + i % 2});
    turn(2, {1});
    turn(4, {1});
  }
  EXPECT_GT(predictor_.worth(Voter::kToken, 0), 0.95);
  EXPECT_LT(predictor_.worth(Voter::kToken, 1), 0.1);
}

// What is guessed before the first layer with experts is worth something of its own, and less than
// what is guessed there.
TEST_F(ExpertPredictorTest, GuessesMadeBeforeTheFirstLayer) {
  absent_ = {{1, 5}, {2, 3}, {2, 7}};
  look_ahead(1, 1, {5}, 1, /*from=*/0);
  look_ahead(2, 2, {3}, 1, /*from=*/0);
  EXPECT_THAT(guessed(1), testing::ElementsAre(5));
  EXPECT_THAT(guessed(2), testing::ElementsAre(3));
  turn(1, {6});
  EXPECT_LT(predictor_.worth(Voter::kBeforeFirst, 0), 0.6);
  EXPECT_NEAR(predictor_.worth(Voter::kNextLayer, 0), 0.7, 1e-6);
  look_ahead(2, 1, {7});
  EXPECT_THAT(guessed(2), testing::ElementsAre(7));
}

TEST_F(ExpertPredictorTest, GuessesWhatIsAbsentInTheOrderOfItsRanks) {
  absent_ = {{2, 7}, {2, 3}, {2, 9}};
  look_ahead(2, 1, {9, 5, 3, 1, 7});
  EXPECT_THAT(guessed(2), testing::ElementsAre(9, 3, 7));
  EXPECT_TRUE(guessed(4).empty());
  const auto guesses = predictor_.guesses(2);
  EXPECT_GT(guesses[0].odds, guesses[1].odds);
  EXPECT_GT(guesses[1].odds, guesses[2].odds);
}

TEST_F(ExpertPredictorTest, TheLayerAfterTheLastIsTheFirst) {
  EXPECT_EQ(predictor_.next_layer(1), 2);
  EXPECT_EQ(predictor_.next_layer(2), 4);
  EXPECT_EQ(predictor_.next_layer(4), 1);
}

TEST_F(ExpertPredictorTest, WhatIsSaidOneLayerAheadSupersedesWhatWasSaidTwoAhead) {
  absent_ = {{4, 1}, {4, 2}};
  look_ahead(4, 2, {1, 2});
  EXPECT_THAT(guessed(4), testing::ElementsAre(1, 2));
  look_ahead(4, 1, {2});
  EXPECT_THAT(guessed(4), testing::ElementsAre(2));
  look_ahead(4, 1, {1});  // said anew
  EXPECT_THAT(guessed(4), testing::ElementsAre(1));
}

TEST_F(ExpertPredictorTest, ManyRowsMakeAGuessCertainAndKeepItsOrder) {
  absent_ = {{2, 1}, {2, 2}, {2, 3}};
  std::vector<std::int32_t> rows;
  for (int row = 0; row < 300; ++row) {
    rows.push_back(row % 3 == 0 ? 1 : 2);
    rows.push_back(row == 7 ? 3 : 10);
  }
  look_ahead(2, 1, rows, 300);
  EXPECT_THAT(guessed(2), testing::ElementsAre(2, 1, 3));
  EXPECT_GT(predictor_.guesses(2)[1].odds, 0.999f);
  EXPECT_GT(predictor_.guesses(2)[0].belief, predictor_.guesses(2)[1].belief);
}

// All rows name 6 and 7 behind the four experts that they would choose.
TEST_F(ExpertPredictorTest, ManyRowsVoteForNothingBehindTheirChoice) {
  for (int expert = 0; expert < 10; ++expert) absent_.insert({2, expert});
  const std::vector<std::int32_t> row = {1, 2, 3, 5, 6, 7};
  look_ahead(2, 1, row);
  EXPECT_THAT(guessed(2), testing::ElementsAre(1, 2, 3, 5, 6, 7));
  std::vector<std::int32_t> rows;
  for (int i = 0; i < 100; ++i) rows.insert(rows.end(), row.begin(), row.end());
  look_ahead(2, 1, rows, 100);
  EXPECT_THAT(guessed(2), testing::ElementsAre(1, 2, 3, 5));
}

// Rank 0 is always right, rank 1 half of the time, rank 2 never; and what is resident teaches
// nothing.
TEST_F(ExpertPredictorTest, LearnsWhatEachRankIsWorthOnMisses) {
  absent_ = {{2, 0}, {2, 1}, {2, 2}};
  for (int i = 0; i < 600; ++i) {
    look_ahead(2, 1, {0, 1, 2, 20, 21});
    turn(2, i % 2 == 0 ? std::vector{0, 1, 20, 21} : std::vector{0, 20, 21});
  }
  EXPECT_NEAR(predictor_.worth(Voter::kNextLayer, 0), 1.0, 0.05);
  EXPECT_NEAR(predictor_.worth(Voter::kNextLayer, 1), 0.5, 0.05);
  EXPECT_NEAR(predictor_.worth(Voter::kNextLayer, 2), 0.0, 0.05);
  const double untaught = ExpertPredictor(shapes_, kGrid, 0.2).worth(Voter::kNextLayer, 3);
  EXPECT_EQ(predictor_.worth(Voter::kNextLayer, 3), untaught);
  EXPECT_EQ(predictor_.score().would_miss, 900);
  EXPECT_EQ(predictor_.score().foreseen, 900);
  EXPECT_LT(predictor_.score().guessed, 1300);  // rank 2 was soon left out
}

TEST_F(ExpertPredictorTest, LearnsWhatIsMissingAfterWhat) {
  absent_ = {{2, 5}, {2, 6}};
  for (int i = 0; i < 40; ++i) {
    const bool even = i % 2 == 0;
    turn(1, even ? std::vector{1, 2} : std::vector{3, 4});
    turn(2, even ? std::vector{5} : std::vector{6});
  }
  turn(1, {1, 2});
  ASSERT_THAT(guessed(2), testing::ElementsAre(5, 6));  // 6 by the layer's last turn
  EXPECT_GT(predictor_.guesses(2)[0].odds, 0.8f);
  EXPECT_LT(predictor_.guesses(2)[1].odds, 0.2f);
}

TEST_F(ExpertPredictorTest, TheLastTurnsExpertsAreGuessedWhereTheyAreAbsent) {
  turn(2, {8, 9});
  absent_ = {{2, 9}};
  turn(1, {1});
  EXPECT_THAT(guessed(2), testing::ElementsAre(9));
}

TEST_F(ExpertPredictorTest, ASweepTeachesNothing) {
  absent_ = {{2, 0}};
  const double before = predictor_.worth(Voter::kNextLayer, 0);
  for (int i = 0; i < 50; ++i) {
    look_ahead(2, 1, {0});
    turn(2, {1, 2, 3}, /*sweep=*/true);
  }
  EXPECT_EQ(predictor_.worth(Voter::kNextLayer, 0), before);
  EXPECT_EQ(predictor_.score().would_miss, 0);
}

TEST_F(ExpertPredictorTest, GuessesEndWithTheirLayersTurn) {
  absent_ = {{2, 1}};
  look_ahead(2, 1, {1});
  turn(2, {4});
  EXPECT_TRUE(guessed(2).empty());
}

}  // namespace
}  // namespace stoker
