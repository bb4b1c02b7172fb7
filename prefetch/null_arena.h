// Slots without memory, for models of paging: all there is of them is how many they are.
#pragma once

#include "core/interface/slot_arena.h"

namespace stoker {

class NullArena final : public SlotArena {
 public:
  NullArena(int num_slots, std::int64_t slot_bytes)
      : num_slots_(num_slots), slot_bytes_(slot_bytes) {}
  int num_slots() const override { return num_slots_; }
  std::int64_t slot_bytes() const override { return slot_bytes_; }
  int num_usable() const override { return num_slots_; }
  std::byte* slot(int /*index*/) const override { return nullptr; }

 private:
  int num_slots_;
  std::int64_t slot_bytes_;
};

}  // namespace stoker
