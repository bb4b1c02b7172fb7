// Segmented LRU: newcomers are on probation; a second use protects. When more than a share of the
// slots is protected, the one not used for the longest goes back on probation.
#include <vector>

#include "prefetch/eviction_policies.h"
#include "prefetch/rank_heap.h"

namespace stoker {
namespace {

constexpr double kProtectedShare = 0.7;

class SlruPolicy final : public EvictionPolicy {
 public:
  explicit SlruPolicy(int num_slots)
      : probation_(num_slots),
        protected_(num_slots),
        slots_(static_cast<std::size_t>(num_slots)),
        max_protected_(static_cast<int>(kProtectedShare * num_slots)) {}

  std::string_view name() const override { return "slru"; }

  void enter(SlotIdx slot, ExpertId /*id*/, Standing standing) override {
    Slot& s = slots_[slot];
    now_ += 1.0;
    switch (standing) {
      case Standing::kUsed:
        s.is_protected = s.was_used;
        s.was_used = true;
        s.key = now_;
        break;
      case Standing::kGuessed:
        s.key = now_;
        break;
      case Standing::kCold:
        s = {.key = kColdKey + now_};
        break;
      case Standing::kKept:
        break;
    }
    (s.is_protected ? protected_ : probation_).add(slot, s.key);
    if (protected_.size() > max_protected_) demote();
  }

  void leave(SlotIdx slot, bool evicted) override {
    Slot& s = slots_[slot];
    (s.is_protected ? protected_ : probation_).remove(slot);
    if (evicted) s = {};
  }

  SlotIdx victim() override { return probation_.empty() ? protected_.top() : probation_.top(); }

 private:
  struct Slot {
    double key = kColdKey;
    bool was_used = false, is_protected = false;
  };

  void demote() {
    const SlotIdx slot = protected_.top();
    Slot& s = slots_[slot];
    protected_.remove(slot);
    s.is_protected = false;
    s.key = now_;  // at the warm end of probation
    now_ += 1.0;
    probation_.add(slot, s.key);
  }

  RankHeap probation_, protected_;
  std::vector<Slot> slots_;
  int max_protected_;
  double now_ = 0.0;  // counts entries
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_slru_policy(int num_slots) {
  return std::make_unique<SlruPolicy>(num_slots);
}

}  // namespace stoker
