#include "prefetch/reuse_odds.h"

#include <algorithm>
#include <bit>

namespace stoker {

ReuseOdds::ReuseOdds(const ExpertShapes& shapes)
    : layers_(static_cast<std::size_t>(shapes.num_layers())) {
  for (int layer = 0; layer < shapes.num_layers(); ++layer) {
    if (!shapes.has_experts(layer)) continue;
    layers_[layer].last_used.assign(static_cast<std::size_t>(shapes.layer(layer).num_experts),
                                    kNever);
  }
  // Published routers keep about a third of their choice from one token to the next, and are close
  // to uniform after a while.
  for (std::size_t i = 0; i < kBuckets; ++i)
    odds_[i] = Odds(std::max(0.33 / static_cast<double>(i + 1), 0.02));
}

std::size_t ReuseOdds::bucket(std::int64_t age) {
  return std::min<std::size_t>(std::bit_width(static_cast<std::uint64_t>(age)), kBuckets - 1);
}

std::int64_t ReuseOdds::age(ExpertId id) const {
  const Layer& layer = layers_[id.layer];
  return layer.turn - layer.last_used[id.expert];
}

void ReuseOdds::observe(int layer, std::span<const ExpertUse> uses) {
  Layer& l = layers_[layer];
  if (l.turn % kSampledTurns == 0) {
    std::array<int, kBuckets> used{}, present{};
    for (std::size_t expert = 0; expert < l.last_used.size(); ++expert)
      ++present[bucket(l.turn - l.last_used[expert])];
    for (const ExpertUse& use : uses) ++used[bucket(l.turn - l.last_used[use.expert])];
    for (std::size_t i = 0; i < kBuckets; ++i) odds_[i].observe(used[i], present[i]);
  }
  ++l.turn;
  for (const ExpertUse& use : uses) l.last_used[use.expert] = l.turn;
}

}  // namespace stoker
