// SlotArena: the memory that resident experts lie in, cut into slots of one size.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/error.h"

namespace stoker {

// Slots come into being in the background, in ascending order, so that a large arena does not delay
// the first token. Thread-safe.
class SlotArena {
 public:
  virtual ~SlotArena() = default;

  virtual int num_slots() const = 0;
  virtual std::int64_t slot_bytes() const = 0;
  // Slots [0, num_usable()) may be used; grows up to num_slots().
  virtual int num_usable() const = 0;
  // Address of a usable slot, aligned to 4 KiB.
  virtual std::byte* slot(int index) const = 0;
  // Why num_usable() stopped growing, if it did.
  virtual Status status() const { return {}; }
};

}  // namespace stoker
