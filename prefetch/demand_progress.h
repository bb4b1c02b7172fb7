// DemandProgress: how far the parts of one demand are. It says which block to give out next and
// when an expert, and all of them, are done. Knows uses and blocks by number only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "prefetch/expert_shapes.h"

namespace stoker {

// Gate/up blocks are given out as they land; down blocks after all gate/up blocks of their expert
// have passed. Of what is ready, urgent uses go first, and then gate/up blocks before down blocks:
// they are what others wait for. Driver thread; allocates nothing after construction.
class DemandProgress {
 public:
  struct Place {
    int use = 0, block = 0;
  };

  DemandProgress(int max_uses, int max_blocks);

  void open(int num_uses, const ExpertShapes::Layer& shape);
  // Somebody waits for the slot that `use` will leave. Before any of its blocks has landed.
  void set_urgent(int use) { uses_[use].urgent = true; }

  // Nothing of `use` is given out here: it is done. Before any of its blocks has landed.
  void skip(int use);

  // The block may be read.
  void landed(int use, int block);
  // The next block to give out, if one is ready. It counts as taken.
  std::optional<Place> take();
  // A taken block has been found good, or needed no check.
  void passed(int use, int block);
  // A taken block has been found bad: it will land again.
  void failed(int use, int block);

  bool any_ready() const {
    return std::any_of(ready_.begin(), ready_.end(), [](const Fifo& f) { return !f.empty(); });
  }
  bool all_taken() const { return num_untaken_ == 0; }
  bool done(int use) const { return uses_[use].num_unpassed == 0; }
  bool all_done() const { return num_undone_ == 0; }

 private:
  enum class State : std::uint8_t { kAway, kLanded, kReady, kTaken, kPassed };
  struct Use {
    int num_unpassed = 0, num_gate_up_unpassed = 0;
    bool urgent = false;
  };
  // A queue of at most `capacity` places.
  class Fifo {
   public:
    explicit Fifo(std::size_t capacity) : ring_(capacity) {}
    bool empty() const { return size_ == 0; }
    void clear() { size_ = 0; }
    void push(Place place);
    Place pop();

   private:
    std::vector<Place> ring_;
    std::size_t first_ = 0, size_ = 0;
  };

  State& state(int use, int block) {
    return states_[static_cast<std::size_t>(use) * static_cast<std::size_t>(max_blocks_) +
                   static_cast<std::size_t>(block)];
  }
  bool is_gate_up(int block) const { return block < shape_->num_gate_up; }
  void make_ready(int use, int block);

  int max_uses_, max_blocks_;
  const ExpertShapes::Layer* shape_ = nullptr;
  std::vector<Use> uses_;
  std::vector<State> states_;  // [max_uses, max_blocks]
  std::array<Fifo, 4> ready_;  // urgent gate/up, urgent down, other gate/up, other down
  int num_untaken_ = 0, num_undone_ = 0;
};

}  // namespace stoker
