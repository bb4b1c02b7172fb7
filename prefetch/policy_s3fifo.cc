// In the manner of S3-FIFO: newcomers queue in a small FIFO; who is used again before its end moves
// to the main one, where a use buys another round. Who leaves the small queue unused is remembered
// for a while and, when it comes back, goes to the main queue at once.
#include <algorithm>
#include <vector>

#include "prefetch/eviction_policies.h"
#include "prefetch/rank_heap.h"

namespace stoker {
namespace {

constexpr double kSmallShare = 0.1;
constexpr int kMaxUses = 3;

class S3FifoPolicy final : public EvictionPolicy {
 public:
  S3FifoPolicy(ExpertGrid grid, int num_slots)
      : grid_(grid),
        small_(num_slots),
        main_(num_slots),
        slots_(static_cast<std::size_t>(num_slots)),
        sent_away_(static_cast<std::size_t>(grid.size()), -1),
        num_slots_(num_slots),
        max_small_(std::max(1, static_cast<int>(kSmallShare * num_slots))) {}

  std::string_view name() const override { return "s3fifo"; }

  void enter(SlotIdx slot, ExpertId id, Standing standing) override {
    Slot& s = slots_[slot];
    if (s.id != id) {
      s = {.id = id, .in_main = remembered(id)};
      s.key = next_key();
    }
    switch (standing) {
      case Standing::kUsed:
        if (s.seen) s.uses = std::min(s.uses + 1, kMaxUses);
        s.seen = true;
        if (s.key < 0.0) s.key = next_key();  // was cold
        break;
      case Standing::kCold:
        s = {.id = id};
        s.key = kColdKey + next_key();
        break;
      case Standing::kGuessed:
      case Standing::kKept:
        break;
    }
    (s.in_main ? main_ : small_).add(slot, s.key);
  }

  void leave(SlotIdx slot, bool evicted) override {
    Slot& s = slots_[slot];
    (s.in_main ? main_ : small_).remove(slot);
    if (!evicted) return;
    if (!s.in_main && s.seen) sent_away_[grid_.index(s.id)] = ++num_sent_;
    s = {};
  }

  // Each round spends a use or moves somebody to the main queue, so this ends; over many calls it
  // costs as many rounds as there were uses.
  SlotIdx victim() override {
    while (true) {
      const bool cold = !small_.empty() && small_.top_key() < 0.0;
      const bool from_small = cold || main_.empty() || small_.size() >= max_small_;
      const SlotIdx slot = from_small && !small_.empty() ? small_.top() : main_.top();
      Slot& s = slots_[slot];
      if (s.uses == 0) return slot;
      (s.in_main ? main_ : small_).remove(slot);
      s.uses = s.in_main ? s.uses - 1 : 0;
      s.in_main = true;
      s.key = next_key();
      main_.add(slot, s.key);
    }
  }

 private:
  struct Slot {
    ExpertId id{-1, -1};
    double key = kColdKey;
    int uses = 0;       // since it entered its queue
    bool seen = false;  // used at all: the use that brought it earns nothing
    bool in_main = false;
  };

  double next_key() { return now_ += 1.0; }
  bool remembered(ExpertId id) const {
    const std::int64_t sent = sent_away_[grid_.index(id)];
    return sent >= 0 && num_sent_ - sent < num_slots_;
  }

  ExpertGrid grid_;
  RankHeap small_, main_;
  std::vector<Slot> slots_;
  std::vector<std::int64_t> sent_away_;  // by expert: the num_sent_ at which it went, or -1
  std::int64_t num_sent_ = 0;
  int num_slots_, max_small_;
  double now_ = 0.0;  // counts places in the queues
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_s3fifo_policy(ExpertGrid grid, int num_slots) {
  return std::make_unique<S3FifoPolicy>(grid, num_slots);
}

}  // namespace stoker
