// RankHeap: slots ordered by a key, the smallest on top; any of them can be taken out.
#pragma once

#include <utility>
#include <vector>

#include "core/base/check.h"
#include "prefetch/expert_grid.h"

namespace stoker {

// A binary heap that knows where each slot stands in it: add and remove take O(log size), allocate
// nothing. Keys of different slots should differ, or their order is the heap's whim.
class RankHeap {
 public:
  explicit RankHeap(int num_slots) : position_(static_cast<std::size_t>(num_slots), kAbsent) {
    entries_.reserve(position_.size());
  }

  bool empty() const { return entries_.empty(); }
  int size() const { return static_cast<int>(entries_.size()); }
  bool contains(SlotIdx slot) const { return position_[at(slot)] != kAbsent; }
  // Requires: not empty.
  SlotIdx top() const {
    CHECK(!empty(), "the top of an empty heap");
    return entries_.front().slot;
  }
  double top_key() const {
    CHECK(!empty(), "the top of an empty heap");
    return entries_.front().key;
  }

  // Requires: `slot` is not in the heap.
  void add(SlotIdx slot, double key) {
    CHECK(!contains(slot), "slot {} is in the heap", slot);
    entries_.push_back({key, slot});
    rise(entries_.size() - 1);
  }
  // Requires: `slot` is in the heap.
  void remove(SlotIdx slot) {
    CHECK(contains(slot), "slot {} is not in the heap", slot);
    const auto hole = static_cast<std::size_t>(position_[at(slot)]);
    position_[at(slot)] = kAbsent;
    const Entry last = entries_.back();
    entries_.pop_back();
    if (last.slot == slot) return;
    entries_[hole] = last;
    position_[at(last.slot)] = static_cast<std::int32_t>(hole);
    sink(hole);
    rise(static_cast<std::size_t>(position_[at(last.slot)]));
  }

 private:
  struct Entry {
    double key;
    SlotIdx slot;
  };
  static constexpr std::int32_t kAbsent = -1;

  static std::size_t at(SlotIdx slot) { return static_cast<std::size_t>(slot); }
  void put(std::size_t position, const Entry& entry) {
    entries_[position] = entry;
    position_[at(entry.slot)] = static_cast<std::int32_t>(position);
  }
  void rise(std::size_t position) {
    const Entry entry = entries_[position];
    for (; position > 0 && entries_[(position - 1) / 2].key > entry.key;
         position = (position - 1) / 2) {
      put(position, entries_[(position - 1) / 2]);
    }
    put(position, entry);
  }
  void sink(std::size_t position) {
    const Entry entry = entries_[position];
    while (2 * position + 1 < entries_.size()) {
      std::size_t child = 2 * position + 1;
      if (child + 1 < entries_.size() && entries_[child + 1].key < entries_[child].key) ++child;
      if (entries_[child].key >= entry.key) break;
      put(position, entries_[child]);
      position = child;
    }
    put(position, entry);
  }

  std::vector<Entry> entries_;
  std::vector<std::int32_t> position_;  // by slot
};

}  // namespace stoker
