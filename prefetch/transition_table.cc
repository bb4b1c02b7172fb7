#include "prefetch/transition_table.h"

#include <algorithm>

namespace stoker {
namespace {

constexpr int kMemory = 256;  // passes, the older half counting half

}  // namespace

TransitionTable::TransitionTable(ExpertGrid grid)
    : grid_(grid), entries_(static_cast<std::size_t>(grid.size())) {}

// Keeps the most frequent as the space-saving algorithm does: a newcomer takes the place of the
// rarest and its count, so that who is really frequent ends up staying.
void TransitionTable::met(ExpertId from, int to) {
  auto& successors = entries_[grid_.index(from)].successors;
  Successor* rarest = successors.data();
  for (Successor& successor : successors) {
    if (successor.count > 0 && successor.expert == to) {
      ++successor.count;
      return;
    }
    if (successor.count < rarest->count) rarest = &successor;
  }
  rarest->expert = static_cast<std::uint16_t>(to);
  ++rarest->count;
}

void TransitionTable::passed(ExpertId from) {
  Entry& entry = entries_[grid_.index(from)];
  if (++entry.num_passed < kMemory) return;
  entry.num_passed /= 2;
  for (Successor& successor : entry.successors) successor.count /= 2;
}

}  // namespace stoker
