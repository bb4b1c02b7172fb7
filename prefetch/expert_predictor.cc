#include "prefetch/expert_predictor.h"

#include <algorithm>
#include <cmath>

namespace stoker {
namespace {

constexpr double kLargestOdds = 0.995;  // of one vote: nothing is certain

// Shares of a transition in powers of two: half or more, a quarter or more, …
constexpr int kShareRanks = 7;

double prior(int voter, int rank) {
  // What others measured of look-ahead gates, and guesses for the rest; forgotten within a token or
  // two.
  const double by_rank = 0.7 * std::exp(-0.15 * rank);
  switch (static_cast<ExpertPredictor::Voter>(voter)) {
    case ExpertPredictor::Voter::kNextLayer:
      return by_rank;
    case ExpertPredictor::Voter::kTwoAhead:
    case ExpertPredictor::Voter::kBeforeFirst:
    case ExpertPredictor::Voter::kToken:
      return 0.85 * by_rank;
    case ExpertPredictor::Voter::kLastTurn:
      return 0.25;
    case ExpertPredictor::Voter::kTransition:
      return std::exp2(-1.0 - rank);
  }
  return 0.0;
}

}  // namespace

ExpertPredictor::ExpertPredictor(const ExpertShapes& shapes, ExpertGrid grid, double min_odds)
    : shapes_(shapes),
      transitions_(grid),
      tokens_(std::min(shapes.max_top_k(), kMaxRankedGuesses)),
      last_turn_(static_cast<std::size_t>(grid.num_layers)),
      next_layer_(static_cast<std::size_t>(grid.num_layers)),
      used_(static_cast<std::size_t>(grid.num_experts)),
      shares_(static_cast<std::size_t>(grid.num_experts)),
      min_odds_(min_odds) {
  for (int voter = 0; voter < kNumVoters; ++voter) {
    for (int rank = 0; rank < kMaxRankedGuesses; ++rank) odds_.emplace_back(prior(voter, rank));
  }
  for (Book& book : books_) {
    for (auto& belief : book.belief) belief.resize(static_cast<std::size_t>(grid.num_experts));
    book.votes.reserve(kMaxVotes);
    book.guesses.reserve(static_cast<std::size_t>(grid.num_experts));
  }
  for (auto& turn : last_turn_) turn.reserve(kMaxLastTurn);
  for (int layer = 0; layer < grid.num_layers; ++layer) {
    int next = layer;
    do {
      next = (next + 1) % grid.num_layers;
    } while (!shapes.has_experts(next));
    next_layer_[layer] = next;
    if (shapes_.has_experts(layer) && first_layers_.size() < TokenTable::kLayers)
      first_layers_.push_back(layer);
  }
}

// ---- Books.

ExpertPredictor::Book* ExpertPredictor::find_book(int layer) {
  const auto at = std::find_if(books_.begin(), books_.end(),
                               [&](const Book& book) { return book.layer == layer; });
  return at == books_.end() ? nullptr : &*at;
}

// The book of `layer`; a new one takes the place of the oldest.
ExpertPredictor::Book& ExpertPredictor::book(int layer) {
  if (Book* open = find_book(layer)) return *open;
  Book& book = *std::min_element(books_.begin(), books_.end(), [](const Book& a, const Book& b) {
    return (a.layer >= 0 ? a.opened : 0) < (b.layer >= 0 ? b.opened : 0);
  });
  book.layer = layer;
  book.opened = ++num_opened_;
  book.sorted = false;
  for (auto& belief : book.belief) std::fill(belief.begin(), belief.end(), 0.0f);
  book.voted.fill(false);
  book.votes.clear();
  book.guesses.clear();
  return book;
}

void ExpertPredictor::forget_votes(Book& book, Voter voter) {
  if (!book.voted[at(voter)]) return;
  auto& belief = book.belief[at(voter)];
  std::fill(belief.begin(), belief.end(), 0.0f);
  book.sorted = false;
  std::erase_if(book.votes, [&](const Vote& vote) { return vote.voter == voter; });
}

void ExpertPredictor::vote(Book& book, Voter voter, int expert, int rank, bool learn) {
  const double odds = std::min(odds_[cell(voter, rank)].value(), kLargestOdds);
  book.belief[at(voter)][expert] -= static_cast<float>(std::log1p(-odds));
  book.voted[at(voter)] = true;
  book.sorted = false;
  if (learn && book.votes.size() < kMaxVotes) {
    book.votes.push_back(
        {static_cast<std::uint16_t>(expert), voter, static_cast<std::uint8_t>(rank)});
  }
}

// ---- Votes.

void ExpertPredictor::look_ahead(const LookAhead& guesses, WouldMiss would_miss) {
  if (!shapes_.has_experts(guesses.layer)) return;
  const Voter voter = !shapes_.has_experts(guesses.from) ? Voter::kBeforeFirst
                      : guesses.lead == 1                ? Voter::kNextLayer
                                                         : Voter::kTwoAhead;
  Book& book = this->book(guesses.layer);
  forget_votes(book, voter);
  const bool learn = guesses.num_rows <= kMaxLearnedRows;
  // Of many rows only what they would choose now: rows are alike, and an expert that all of them
  // name behind their choice may well be nobody's.
  const int num_ranked = std::min({guesses.num_ranked, kMaxRankedGuesses,
                                   learn ? kMaxRankedGuesses : shapes_.layer(guesses.layer).top_k});
  for (int row = 0; row < guesses.num_rows; ++row) {
    const auto ranked = guesses.experts.subspan(static_cast<std::size_t>(row) *
                                                static_cast<std::size_t>(guesses.num_ranked));
    for (int rank = 0; rank < num_ranked; ++rank) {
      const int expert = ranked[rank];
      if (would_miss({guesses.layer, expert})) vote(book, voter, expert, rank, learn);
    }
  }
}

void ExpertPredictor::begin_step(std::span<const TokenId> tokens, WouldMiss would_miss) {
  const bool learn = tokens.size() <= kMaxLearnedRows;
  for (int place = 0; place < static_cast<int>(first_layers_.size()); ++place) {
    const int layer = first_layers_[place];
    Book& book = this->book(layer);
    forget_votes(book, Voter::kToken);
    for (const TokenId token : tokens) {
      int rank = 0;
      for (const int expert : tokens_.find(token, place)) {
        if (would_miss({layer, expert})) vote(book, Voter::kToken, expert, rank, learn);
        ++rank;
      }
    }
  }
}

void ExpertPredictor::note_choices(int layer, std::span<const TokenId> tokens,
                                   std::span<const std::int32_t> experts) {
  const auto at = std::find(first_layers_.begin(), first_layers_.end(), layer);
  if (at == first_layers_.end()) return;
  const std::size_t top_k = experts.size() / tokens.size();
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    tokens_.store(tokens[row], static_cast<int>(at - first_layers_.begin()),
                  experts.subspan(row * top_k, top_k));
  }
}

void ExpertPredictor::guess_from_turns(int layer, WouldMiss would_miss) {
  const int next = next_layer(layer);
  Book& book = this->book(next);
  forget_votes(book, Voter::kLastTurn);
  forget_votes(book, Voter::kTransition);
  for (const int expert : last_turn_[next]) {
    if (would_miss({next, expert})) vote(book, Voter::kLastTurn, expert, 0, true);
  }
  std::fill(shares_.begin(), shares_.end(), 0.0f);
  for (const int expert : last_turn_[layer]) {
    const ExpertId from{layer, expert};
    const auto passed = static_cast<float>(std::max(transitions_.num_passed(from), 4));
    for (const TransitionTable::Successor& successor : transitions_.successors(from))
      shares_[successor.expert] += static_cast<float>(successor.count) / passed;
  }
  for (int expert = 0; expert < shapes_.layer(next).num_experts; ++expert) {
    const float share = shares_[expert];
    const int rank = share >= 0.5f ? 0 : share > 0.0f ? -std::ilogb(share) - 1 : kShareRanks;
    if (rank < kShareRanks && would_miss({next, expert}))
      vote(book, Voter::kTransition, expert, rank, true);
  }
}

// ---- A layer's turn.

void ExpertPredictor::observe(int layer, std::span<const ExpertUse> uses, bool sweep,
                              WouldMiss would_miss) {
  if (Book* book = find_book(layer)) {
    if (!sweep) learn(*book, uses, would_miss);
    book->layer = -1;
  } else if (!sweep) {
    for (const ExpertUse& use : uses) score_.would_miss += would_miss({layer, use.expert}) ? 1 : 0;
  }
  if (sweep || uses.size() > kMaxLastTurn) {
    previous_ = -1;
    return;
  }
  learn_transitions(layer, uses, would_miss);
  previous_ = layer;
  auto& last = last_turn_[layer];
  last.clear();
  for (const ExpertUse& use : uses) last.push_back(static_cast<std::uint16_t>(use.expert));
  guess_from_turns(layer, would_miss);
}

void ExpertPredictor::learn(Book& book, std::span<const ExpertUse> uses, WouldMiss would_miss) {
  sort(book);
  for (const ExpertUse& use : uses) used_[use.expert] = 1;
  for (const Vote& vote : book.votes)
    odds_[cell(vote.voter, vote.rank)].observe(used_[vote.expert] != 0);
  for (const Guess& guess : book.guesses) {
    if (guess.odds < min_odds_) break;
    ++score_.guessed;
    if (used_[guess.expert] != 0) ++score_.foreseen;
  }
  for (const ExpertUse& use : uses) {
    score_.would_miss += would_miss({book.layer, use.expert}) ? 1 : 0;
    used_[use.expert] = 0;
  }
}

void ExpertPredictor::learn_transitions(int layer, std::span<const ExpertUse> uses,
                                        WouldMiss would_miss) {
  if (previous_ < 0 || next_layer(previous_) != layer) return;
  const auto& before = last_turn_[previous_];
  for (const ExpertUse& use : uses) {
    if (!would_miss({layer, use.expert})) continue;
    for (const int from : before) transitions_.met({previous_, from}, use.expert);
  }
  for (const int from : before) transitions_.passed({previous_, from});
}

std::span<const Guess> ExpertPredictor::guesses(int layer) {
  Book* const book = find_book(layer);
  if (book == nullptr) return {};
  sort(*book);
  return book->guesses;
}

// Voters are not independent of each other, so the best of them speaks; what is said one layer
// ahead supersedes what was said before.
void ExpertPredictor::sort(Book& book) {
  if (book.sorted) return;
  book.sorted = true;
  book.guesses.clear();
  const bool near = book.voted[at(Voter::kNextLayer)];
  const int num_experts = shapes_.layer(book.layer).num_experts;
  for (int expert = 0; expert < num_experts; ++expert) {
    float belief = 0.0f;
    for (int voter = 0; voter < kNumVoters; ++voter) {
      const bool earlier = static_cast<Voter>(voter) == Voter::kTwoAhead ||
                           static_cast<Voter>(voter) == Voter::kBeforeFirst;
      if (near && earlier) continue;
      belief = std::max(belief, book.belief[voter][expert]);
    }
    if (belief > 0.0f) book.guesses.push_back({expert, 1.0f - std::exp(-belief), belief});
  }
  std::sort(book.guesses.begin(), book.guesses.end(), [](const Guess& a, const Guess& b) {
    return a.belief != b.belief ? a.belief > b.belief : a.expert < b.expert;
  });
}

}  // namespace stoker
