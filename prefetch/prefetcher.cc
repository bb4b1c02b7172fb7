#include "prefetch/prefetcher.h"

#include <algorithm>

namespace stoker {
namespace {

constexpr int kTokensPerEpoch = 8;
constexpr int kMinTurnsPerEpoch = 128;
// A wish must be this many times likelier than its victim: the victim's chance comes back every
// turn.
constexpr double kVictimFactor = 2.0;
// An expert is begun when at least this share of it fits the idle time: its blocks count one by
// one.
constexpr double kMinShare = 0.25;
// During a sweep, whose layers want most of their experts and compute for long, a guess must be as
// good as certain: what it misses is read soon enough, what nobody wants is read for nothing.
constexpr double kMinSweepOdds = 0.97;

}  // namespace

Prefetcher::Prefetcher(const ExpertShapes& shapes, ExpertGrid grid, const PrefetchOptions& options)
    : shapes_(shapes),
      options_(options),
      num_ranked_(std::min({options.num_ranked > 0 ? options.num_ranked : 2 * shapes.max_top_k(),
                            shapes.max_experts(), kMaxRankedGuesses})),
      predictor_(shapes, grid, options.min_odds),
      reuse_(shapes),
      windows_(shapes.num_layers()),
      switch_(std::max(kTokensPerEpoch * shapes.num_moe_layers(), kMinTurnsPerEpoch)) {}

void Prefetcher::look_ahead(const LookAhead& guesses, WouldMiss would_miss) {
  if (options_.enabled) predictor_.look_ahead(guesses, would_miss);
}

void Prefetcher::begin_step(std::span<const TokenId> tokens, WouldMiss would_miss) {
  if (options_.enabled) predictor_.begin_step(tokens, would_miss);
}

void Prefetcher::note_choices(int layer, std::span<const TokenId> tokens,
                              std::span<const std::int32_t> experts) {
  if (options_.enabled) predictor_.note_choices(layer, tokens, experts);
}

void Prefetcher::begin_turn(int layer, std::span<const ExpertUse> uses, bool sweep,
                            std::int64_t now_us, WouldMiss would_miss) {
  if (!options_.enabled) return;
  predictor_.observe(layer, uses, sweep, would_miss);
  if (!sweep) reuse_.observe(layer, uses);
  windows_.begin_turn(layer, sweep, now_us);
  layer_ = layer;
  sweep_ = sweep;
  turn_began_us_ = now_us;
}

void Prefetcher::end_turn(std::int64_t now_us) {
  if (options_.enabled && options_.adaptive && !sweep_) switch_.observe(now_us - turn_began_us_);
}

std::optional<Wish> Prefetcher::next_wish(std::int64_t now_us, double bytes_per_second,
                                          std::int64_t bytes_under_way, Absent absent) {
  if (!fetching() || layer_ < 0) return std::nullopt;
  const double min_odds = sweep_ ? std::max(kMinSweepOdds, options_.min_odds) : options_.min_odds;
  int layer = layer_;
  std::int64_t idle_us = 0;
  for (const ReadClass read_class : {ReadClass::kNextLayer, ReadClass::kTwoAhead}) {
    layer = predictor_.next_layer(layer);
    idle_us += read_class == ReadClass::kNextLayer ? windows_.left_us(layer, now_us)
                                                   : windows_.whole_us(layer);
    const double room = static_cast<double>(idle_us) * 1e-6 * bytes_per_second -
                        static_cast<double>(bytes_under_way);
    if (room < kMinShare * static_cast<double>(shapes_.layer(layer).expert_bytes)) continue;
    for (const Guess& guess : predictor_.guesses(layer)) {
      if (guess.odds < min_odds) break;
      const ExpertId id{layer, guess.expert};
      if (absent(id)) return Wish{id, read_class, guess.odds};
    }
  }
  return std::nullopt;
}

bool Prefetcher::outweighs(const Wish& wish, ExpertId victim) const {
  return reuse_.age(victim) > 0 && wish.odds > kVictimFactor * reuse_.next_turn(victim);
}

}  // namespace stoker
