// TransitionTable: which experts of a layer tend to be missing after which experts of the layer
// before, learned online. A few successors per expert are kept, those met most often.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "prefetch/expert_grid.h"

namespace stoker {

// Driver thread; allocates nothing after construction.
class TransitionTable {
 public:
  static constexpr int kSuccessors = 8;

  explicit TransitionTable(ExpertGrid grid);

  // `from` was used, and then `to` of the next layer was used and had to be read.
  void met(ExpertId from, int to);
  // `from` was used, and its next layer has had its turn.
  void passed(ExpertId from);

  struct Successor {
    std::uint16_t expert = 0;
    std::uint16_t count = 0;
  };
  std::span<const Successor> successors(ExpertId from) const {
    return entries_[grid_.index(from)].successors;
  }
  // Passes that the counts of its successors are out of.
  int num_passed(ExpertId from) const { return entries_[grid_.index(from)].num_passed; }

 private:
  struct Entry {
    std::array<Successor, kSuccessors> successors{};
    std::uint16_t num_passed = 0;
  };

  ExpertGrid grid_;
  std::vector<Entry> entries_;
};

}  // namespace stoker
