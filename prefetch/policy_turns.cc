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
        lists_(static_cast<std::size_t>(grid.num_layers) + 1) {}

  std::string_view name() const override { return "turns"; }

  void begin_turn(int layer) override {
    layer_ = layer;
    ++lists_[layer].turn;
  }

  void enter(SlotIdx slot, ExpertId id, Standing standing) override {
    Slot& s = slots_[slot];
    s.list = standing == Standing::kCold ? num_layers_ : s.list;
    if (standing == Standing::kUsed || standing == Standing::kGuessed) {
      s.list = id.layer;
      s.last_turn = lists_[id.layer].turn;
    }
    insert(slot);
  }

  void leave(SlotIdx slot, bool /*evicted*/) override { remove(slot); }

  // O(num_layers), over a contiguous array: compares the oldest of every layer.
  SlotIdx victim() override {
    if (lists_.back().first != kNone) return lists_.back().first;
    SlotIdx best = kNone;
    std::int64_t best_age = -1;
    // Layers in the order of their next turn, the last one first.
    for (int back = 0; back < num_layers_; ++back) {
      const int layer = back <= layer_ ? layer_ - back : layer_ - back + num_layers_;
      const List& list = lists_[layer];
      const std::int64_t age = list.turn - list.first_turn;
      if (list.first == kNone || age <= best_age) continue;
      best = list.first;
      best_age = age;
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
    std::int64_t first_turn = 0;  // last_turn of the first
    std::int64_t turn = 0;        // how many turns the layer had
  };

  // At its place by last_turn: at the end, but for what a sweep gives back.
  void insert(SlotIdx slot) {
    Slot& s = slots_[slot];
    List& list = lists_[s.list];
    SlotIdx before = list.last;
    while (s.list != num_layers_ && before != kNone && slots_[before].last_turn > s.last_turn) {
      before = slots_[before].prev;
    }
    s.prev = before;
    s.next = before == kNone ? list.first : slots_[before].next;
    (s.prev == kNone ? list.first : slots_[s.prev].next) = slot;
    (s.next == kNone ? list.last : slots_[s.next].prev) = slot;
    note_first(list);
  }

  void remove(SlotIdx slot) {
    const Slot& s = slots_[slot];
    List& list = lists_[s.list];
    (s.prev == kNone ? list.first : slots_[s.prev].next) = s.next;
    (s.next == kNone ? list.last : slots_[s.next].prev) = s.prev;
    note_first(list);
  }

  void note_first(List& list) const {
    if (list.first != kNone) list.first_turn = slots_[list.first].last_turn;
  }

  int num_layers_;
  std::vector<Slot> slots_;
  std::vector<List> lists_;
  int layer_ = 0;  // whose turn it is
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_turns_policy(ExpertGrid grid, int num_slots) {
  return std::make_unique<TurnsPolicy>(grid, num_slots);
}

}  // namespace stoker
