// Recency counted in turns of the expert's own layer. An expert gets its chance once a step, when
// its layer is run: between two chances nothing is learned of it, so those who let as many chances
// pass are alike, and the best of them to give up is the one whose next chance is farthest away.
// Plain LRU does the opposite there, which below one step's worth of slots evicts exactly what is
// needed next.
#include <vector>

#include "prefetch/eviction_policies.h"

namespace stoker {
namespace {

class TurnsPolicy final : public EvictionPolicy {
 public:
  TurnsPolicy(ExpertGrid grid, int num_slots)
      : num_layers_(grid.num_layers),
        slots_(static_cast<std::size_t>(num_slots)),
        lists_(static_cast<std::size_t>(grid.num_layers) + 1),
        turn_(static_cast<std::size_t>(grid.num_layers), 0) {}

  std::string_view name() const override { return "turns"; }

  void begin_turn(int layer) override {
    layer_ = layer;
    ++turn_[static_cast<std::size_t>(layer)];
  }

  void enter(SlotIdx slot, ExpertId id, Standing standing) override {
    Slot& s = slots_[static_cast<std::size_t>(slot)];
    s.list = standing == Standing::kCold ? num_layers_ : s.list;
    if (standing == Standing::kUsed || standing == Standing::kGuessed) {
      s.list = id.layer;
      s.last_turn = turn_[static_cast<std::size_t>(id.layer)];
    }
    insert(slot);
  }

  void leave(SlotIdx slot, bool /*evicted*/) override { remove(slot); }

  // O(num_layers): compares the oldest of every layer.
  SlotIdx victim() override {
    if (lists_.back().first != kNone) return lists_.back().first;
    SlotIdx best = kNone;
    std::int64_t best_age = -1;
    // Layers in the order of their next turn, the last one first.
    for (int back = 0; back < num_layers_; ++back) {
      const int layer = (layer_ - back + num_layers_) % num_layers_;
      const SlotIdx slot = lists_[static_cast<std::size_t>(layer)].first;
      if (slot == kNone) continue;
      const std::int64_t age =
          turn_[static_cast<std::size_t>(layer)] - slots_[static_cast<std::size_t>(slot)].last_turn;
      if (age > best_age) {
        best = slot;
        best_age = age;
      }
    }
    CHECK(best != kNone, "a victim of an empty ranking");
    return best;
  }

 private:
  static constexpr SlotIdx kNone = -1;
  struct Slot {
    int list = 0;  // its layer, or the cold list behind them
    std::int64_t last_turn = 0;
    SlotIdx prev = kNone, next = kNone;
  };
  struct List {  // the one used longest ago first
    SlotIdx first = kNone, last = kNone;
  };

  // At its place by last_turn: at the end, but for what a sweep gives back.
  void insert(SlotIdx slot) {
    Slot& s = slots_[static_cast<std::size_t>(slot)];
    List& list = lists_[static_cast<std::size_t>(s.list)];
    SlotIdx before = list.last;
    while (s.list != num_layers_ && before != kNone &&
           slots_[static_cast<std::size_t>(before)].last_turn > s.last_turn) {
      before = slots_[static_cast<std::size_t>(before)].prev;
    }
    s.prev = before;
    s.next = before == kNone ? list.first : slots_[static_cast<std::size_t>(before)].next;
    (s.prev == kNone ? list.first : slots_[static_cast<std::size_t>(s.prev)].next) = slot;
    (s.next == kNone ? list.last : slots_[static_cast<std::size_t>(s.next)].prev) = slot;
  }

  void remove(SlotIdx slot) {
    const Slot& s = slots_[static_cast<std::size_t>(slot)];
    List& list = lists_[static_cast<std::size_t>(s.list)];
    (s.prev == kNone ? list.first : slots_[static_cast<std::size_t>(s.prev)].next) = s.next;
    (s.next == kNone ? list.last : slots_[static_cast<std::size_t>(s.next)].prev) = s.prev;
  }

  int num_layers_;
  std::vector<Slot> slots_;
  std::vector<List> lists_;
  std::vector<std::int64_t> turn_;  // by layer: how many it had
  int layer_ = 0;                   // whose turn it is
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_turns_policy(ExpertGrid grid, int num_slots) {
  return std::make_unique<TurnsPolicy>(grid, num_slots);
}

}  // namespace stoker
