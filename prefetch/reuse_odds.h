// ReuseOdds: how likely an expert is used in the next turn of its layer, given how many turns ago
// it was used last. It is what a guess is weighed against when it would cost a resident its slot.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/interface/expert_provider.h"
#include "prefetch/expert_shapes.h"
#include "prefetch/odds.h"

namespace stoker {

// Driver thread; allocates nothing after construction.
class ReuseOdds {
 public:
  explicit ReuseOdds(const ExpertShapes& shapes);

  // `layer` has its turn and uses these experts.
  void observe(int layer, std::span<const ExpertUse> uses);

  // Turns of its layer that passed since the expert was used: 0 for the latest turn.
  std::int64_t age(ExpertId id) const;
  double next_turn(ExpertId id) const { return odds_[bucket(age(id))].value(); }

 private:
  // Ages 0, 1, 2-3, 4-7, …; what was never used is in the last one.
  static constexpr std::size_t kBuckets = 16;
  static std::size_t bucket(std::int64_t age);
  struct Layer {
    std::int64_t turn = 0;
    std::vector<std::int64_t> last_used;  // by expert: the turn, or kNever
  };
  static constexpr std::int64_t kNever = -(std::int64_t{1} << 40);
  static constexpr std::int64_t kSampledTurns =
      4;  // every fourth turn is learned from: it looks at all experts

  std::vector<Layer> layers_;
  std::array<Odds, kBuckets> odds_;
};

}  // namespace stoker
