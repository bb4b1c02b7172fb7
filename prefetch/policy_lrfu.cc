// LRFU: an expert's worth is the sum of its past uses, each fading by half every few steps. Of two
// experts the one that is worth more stays worth more until one of them is used again, so
// log2(worth) at a common moment is a key that need not be touched as time passes.
#include <algorithm>
#include <cmath>
#include <vector>

#include "prefetch/eviction_policies.h"
#include "prefetch/rank_heap.h"

namespace stoker {
namespace {

constexpr double kHalfLifeSteps = 24.0;

class LrfuPolicy final : public EvictionPolicy {
 public:
  LrfuPolicy(ExpertGrid grid, int num_slots)
      : grid_(grid),
        heap_(num_slots),
        key_(static_cast<std::size_t>(num_slots), kColdKey),
        worth_(static_cast<std::size_t>(grid.size()), kColdKey) {}

  std::string_view name() const override { return "lrfu"; }

  void begin_turn(int layer) override {
    if (layer <= layer_) ++step_;
    layer_ = layer;
  }

  void enter(SlotIdx slot, ExpertId id, Standing standing) override {
    double& key = key_[slot];
    double& worth = worth_[grid_.index(id)];
    const double fresh = now() / kHalfLifeSteps;  // what one use now is worth
    switch (standing) {
      case Standing::kUsed:
        worth = fresh + std::log2(1.0 + std::exp2(worth - fresh));
        key = worth;
        break;
      case Standing::kGuessed:
        key = std::max(worth, fresh);
        break;
      case Standing::kCold:
        key = kColdKey + ++num_cold_;
        break;
      case Standing::kKept:
        break;
    }
    heap_.add(slot, key);
  }
  void leave(SlotIdx slot, bool /*evicted*/) override { heap_.remove(slot); }
  SlotIdx victim() override { return heap_.top(); }

 private:
  // In steps. Layers of one step differ a little, so that older ones rank lower.
  double now() const {
    return static_cast<double>(step_) + static_cast<double>(layer_) / grid_.num_layers;
  }

  ExpertGrid grid_;
  RankHeap heap_;
  std::vector<double> key_;    // by slot; survives a lease
  std::vector<double> worth_;  // by expert: log2 of the faded count, as at step 0
  double num_cold_ = 0.0;
  std::int64_t step_ = 0;
  int layer_ = -1;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lrfu_policy(ExpertGrid grid, int num_slots) {
  return std::make_unique<LrfuPolicy>(grid, num_slots);
}

}  // namespace stoker
