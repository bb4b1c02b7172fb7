#include <vector>

#include "prefetch/eviction_policies.h"
#include "prefetch/rank_heap.h"

namespace stoker {
namespace {

// Ranks by the moment of the last use. A heap rather than a list, because what a sweep borrowed
// goes back to its old place.
class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(int num_slots)
      : heap_(num_slots), key_(static_cast<std::size_t>(num_slots), kColdKey) {}

  std::string_view name() const override { return "lru"; }

  void enter(SlotIdx slot, ExpertId /*id*/, Standing standing) override {
    double& key = key_[slot];
    now_ += 1.0;
    if (standing == Standing::kCold) key = kColdKey + now_;
    if (standing == Standing::kUsed || standing == Standing::kGuessed) key = now_;
    heap_.add(slot, key);
  }
  void leave(SlotIdx slot, bool /*evicted*/) override { heap_.remove(slot); }
  SlotIdx victim() override { return heap_.top(); }

 private:
  RankHeap heap_;
  std::vector<double> key_;  // by slot; survives a lease
  double now_ = 0.0;         // counts entries
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(int num_slots) {
  return std::make_unique<LruPolicy>(num_slots);
}

}  // namespace stoker
