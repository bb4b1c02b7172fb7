// ExpertPredictor: which experts a layer will ask for that would have to be read. It joins what the
// look-ahead gate says one and two MoE layers ahead (and before the first of them, where it knows
// less), what the token chose in the first layers when it came by last, the experts of the layer's
// last turn, and what tended to be missing after the experts of the layer before.
//
// All of these are *voters*; what a vote is worth is learned from what became of its earlier votes,
// and only of those for experts that were not there: an expert that is resident anyway needs no
// foresight, and voters are right about those far more often than about misses. So the ranks of a
// look-ahead that are mostly wrong sink by themselves.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/function_ref.h"
#include "core/interface/expert_provider.h"
#include "prefetch/expert_shapes.h"
#include "prefetch/odds.h"
#include "prefetch/token_table.h"
#include "prefetch/transition_table.h"

namespace stoker {

// An expert that may be asked for and would have to be read.
struct Guess {
  int expert = 0;
  float odds = 0.0f;    // of being asked for
  float belief = 0.0f;  // orders guesses, also those that are as good as certain
};

// How foresight did, over all turns but sweeps: of the misses there would have been without it, how
// many were foreseen; and for how many guesses.
struct PredictionScore {
  std::int64_t would_miss = 0;
  std::int64_t foreseen = 0;
  std::int64_t guessed = 0;
};

// Driver thread; allocates nothing after construction.
class ExpertPredictor {
 public:
  // Says whether an expert would have to be read if it were asked for: it is absent, or there by a
  // guess alone.
  using WouldMiss = FunctionRef<bool(ExpertId)>;

  // Guesses below `min_odds` do not count in score().
  ExpertPredictor(const ExpertShapes& shapes, ExpertGrid grid, double min_odds);

  void look_ahead(const LookAhead& guesses, WouldMiss would_miss);
  // Guesses from these tokens, whose step begins; and learns what tokens chose, [T, top_k].
  void begin_step(std::span<const TokenId> tokens, WouldMiss would_miss);
  void note_choices(int layer, std::span<const TokenId> tokens,
                    std::span<const std::int32_t> experts);
  // `layer` has its turn. Scores what had been guessed of it, forgets that, and guesses from it
  // what its next layer may want.
  void observe(int layer, std::span<const ExpertUse> uses, bool sweep, WouldMiss would_miss);

  // What is guessed of a layer that is still to come, the likeliest first; the layer after the last
  // is the first. Valid until the next call of look_ahead() or observe().
  std::span<const Guess> guesses(int layer);

  // The layer with experts that comes after `layer`.
  int next_layer(int layer) const { return next_layer_[layer]; }

  enum class Voter : std::uint8_t {
    kNextLayer,
    kTwoAhead,
    kBeforeFirst,
    kToken,
    kLastTurn,
    kTransition
  };
  PredictionScore score() const { return score_; }
  // What a vote of this voter and rank is worth now.
  double worth(Voter voter, int rank) const { return odds_[cell(voter, rank)].value(); }

 private:
  static constexpr int kNumVoters = 6;
  static constexpr int kMaxBooks = 4;             // layers guessed of at a time
  static constexpr std::size_t kMaxVotes = 2048;  // that are learned from, per book
  static constexpr int kMaxLearnedRows = 8;
  static constexpr int kMaxLastTurn = 64;  // experts of a turn that are remembered

  struct Vote {
    std::uint16_t expert;
    Voter voter;
    std::uint8_t rank;
  };
  // All that is guessed of one layer.
  struct Book {
    int layer = -1;
    std::uint64_t opened = 0;
    bool sorted = false;
    // [voter][expert]: minus the logarithm of the odds that no row wants it.
    std::array<std::vector<float>, kNumVoters> belief;
    std::array<bool, kNumVoters> voted{};
    std::vector<Vote> votes;  // for experts that would have been missed
    std::vector<Guess> guesses;
  };
  static int at(Voter voter) { return static_cast<int>(voter); }
  static int cell(Voter voter, int rank) { return at(voter) * kMaxRankedGuesses + rank; }
  Book& book(int layer);
  Book* find_book(int layer);
  void forget_votes(Book& book, Voter voter);
  void vote(Book& book, Voter voter, int expert, int rank, bool learn);
  void learn(Book& book, std::span<const ExpertUse> uses, WouldMiss would_miss);
  void learn_transitions(int layer, std::span<const ExpertUse> uses, WouldMiss would_miss);
  void guess_from_turns(int layer, WouldMiss would_miss);
  void sort(Book& book);

  const ExpertShapes& shapes_;
  TransitionTable transitions_;
  TokenTable tokens_;
  std::vector<int> first_layers_;  // with experts, at most TokenTable::kLayers
  std::vector<Odds> odds_;         // [voter, rank]
  std::array<Book, kMaxBooks> books_;
  std::uint64_t num_opened_ = 0;
  std::vector<std::vector<std::uint16_t>> last_turn_;  // by layer: the experts of its last turn
  std::vector<int> next_layer_;                        // by layer
  int previous_ = -1;               // the layer that had its turn before, if no sweep
  std::vector<std::uint8_t> used_;  // scratch, by expert
  std::vector<float> shares_;       // scratch, by expert
  double min_odds_;
  PredictionScore score_;
};

}  // namespace stoker
