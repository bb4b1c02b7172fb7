// Parts of steps (Backend::begin_part) as CUDA graphs. The operations of a part run as they come
// the first time, are captured the second, and stand behind one launch from then on.
#pragma once

#include <climits>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "core/interface/backend.h"
#include "gpu/device.h"
#include "gpu/scratch.h"

namespace stoker::gpu {

// Numbers of visible positions that launches do not tell apart: all are treated as the last.
struct VisibleRange {
  int first = 0, last = INT_MAX;
};
// The range that holds `most_visible`: a quarter of the way from a power of two to the next, and at
// least a page, so that a graph serves many tokens. None reaches over `boundary` (0: there is
// none), up to which launches are others than above it.
VisibleRange visible_range(int most_visible, int boundary);

struct GraphDeleter {
  void operator()(void* graph) const;
};

// Finding a part takes no call of the driver and allocates nothing; making its graph does. A
// capture that fails ends all of this: from then on every part runs as it comes. Calls with the
// stream's device current.
class PartGraphs {
 public:
  // Of at most so many parts; the one that was used the longest ago makes room. 0: of none.
  explicit PartGraphs(int most) : most_(most) {}
  PartGraphs(const PartGraphs&) = delete;
  PartGraphs& operator=(const PartGraphs&) = delete;

  // What is the same for all operations of a part.
  struct Part {
    const StepView* step;
    int number;
    const void* tables;                   // of the step, on the device
    ScratchBuffers::Allocations scratch;  // what operations compute in
  };
  // Opens it. Operations are given to `stream` until the end, unless it is replayed.
  void begin(const Part& part, const Stream& stream);
  // Closes it. Whether launch() is to follow. `failed`: operations were not all enqueued.
  Result<bool> end(bool failed, const Stream& stream);
  Status launch(const Stream& stream);

  bool open() const { return mode_ != Mode::kNone; }
  bool captured() const { return mode_ == Mode::kCapture; }  // operations are, and do not run yet
  bool replayed() const { return mode_ == Mode::kReplay; }   // and are not to be enqueued

  // An operation of the open part, if one is open.
  void count() { num_calls_ += open() ? 1 : 0; }
  // It treats these numbers of visible positions alike.
  void narrow(VisibleRange range);

  // Graphs of steps at that address, or all of them, are no longer what would be enqueued.
  void forget(const StepView& step);
  void clear();

  int num_graphs() const;

 private:
  enum class Mode : std::uint8_t { kNone, kRun, kCapture, kReplay };
  struct Key {
    std::uintptr_t step;
    int num_rows, number;
    int last_visible;  // of the range that it serves
    auto operator<=>(const Key&) const = default;
  };
  struct Entry {
    int first_visible = 0;
    const void* tables = nullptr;
    int num_calls = 0;
    std::uint64_t last_use = 0;
    std::unique_ptr<void, GraphDeleter> graph;  // a cudaGraphExec_t; null: seen once
  };
  using Entries = std::map<Key, Entry>;

  Entries::iterator find(const Part& part, int most_visible);
  void remember();
  Status instantiate(const Stream& stream, bool failed);

  int most_;
  Entries entries_;
  ScratchBuffers::Allocations scratch_{};
  std::uint64_t num_uses_ = 0;

  // The open part, and after end() the one to launch.
  Mode mode_ = Mode::kNone;
  Part part_{};
  VisibleRange range_;
  int num_calls_ = 0;
  Entries::iterator current_ = entries_.end();
};

}  // namespace stoker::gpu
