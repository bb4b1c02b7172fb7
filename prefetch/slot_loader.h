// SlotLoader: brings the blocks of experts into slots and remembers of each block whether it may be
// used. Knows slots and addresses, not why an expert is wanted.
//
//   absent --submit--> reading --> landed --lend--> lent --check: good--> checked
//     ^                   |                           |
//     +-----cancelled-----+--failed--> (read again) <-+--check: bad
//
// A block that cannot be read or does not hold its checksum is read again from the same copy, then
// once from every other copy; after that it is *unreadable*, with the story as an error.
//
// Belongs to the driver thread; check() alone is called by workers, and each ticket by one of them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/base/function_ref.h"
#include "core/interface/expert_source.h"
#include "core/interface/slot_arena.h"
#include "prefetch/expert_grid.h"
#include "prefetch/expert_shapes.h"

namespace stoker {

// What befell a block.
struct BlockEvent {
  enum class Kind : std::uint8_t {
    kLanded,      // may be lent
    kReturned,    // a read was taken back: the block is absent
    kChecked,     // lent and found good
    kAgain,       // lent and found bad: it is being read again
    kUnreadable,  // no copy is good: the reason is in story_of()
  };
  Kind kind = Kind::kLanded;
  SlotIdx slot = 0;
  int block = 0;
};

// Blocks read again, and how many of them came from another copy; by layer.
struct RetryCounts {
  std::int64_t retried = 0, repaired = 0;
};

class SlotLoader final : public BlockGuard {
 public:
  using EventSink = FunctionRef<void(const BlockEvent&)>;

  // All of these outlive the loader.
  SlotLoader(const ExpertShapes& shapes, const ExpertSource& source, ExpertReader& reader,
             const SlotArena& arena, DeviceId device);
  // Takes back what has not been issued. What has still comes to its slot, until the reader is
  // gone.
  ~SlotLoader();

  // Gives `slot` to the blocks of `id`, all absent. Requires: quiet.
  void assign(SlotIdx slot, ExpertId id);
  // Reads what is absent, and moves what waits for its turn to this class and priority. Reads are
  // gathered until submit() or poll().
  void fetch(SlotIdx slot, ReadClass read_class, float gate_up_priority, float down_priority);
  void submit();
  // Takes back what has not been issued. The slot stays assigned; fetch() may take it up again.
  void cancel(SlotIdx slot);

  // Driver: takes in what the reader has finished and what workers have checked.
  void poll(EventSink sink);

  // A landed or checked block as a part; guarded by check() unless it has been checked.
  ExpertPart lend(SlotIdx slot, int block);
  // Forgets about lent blocks that nobody has checked: they count as landed again. For the end of a
  // demand that was given up. What was found bad meanwhile becomes absent.
  void take_back_lent();

  // BlockGuard, for workers.
  bool check(std::uint32_t ticket) override;

  // No read is under way to the slot.
  bool quiet(SlotIdx slot) const { return num_reading(slot) == 0; }
  int num_reading(SlotIdx slot) const { return slots_[at(slot)].num_reading; }
  // Landed and not found bad.
  bool usable(SlotIdx slot, int block) const;
  bool all_landed(SlotIdx slot) const;
  bool all_checked(SlotIdx slot) const;  // and found good
  std::int64_t landed_bytes(SlotIdx slot) const { return slots_[at(slot)].landed_bytes; }
  // As of the last poll(), lent blocks that nobody had checked: somebody is computing.
  bool awaits_checks() const { return !lent_.empty(); }
  // As of now, all that was lent has been checked and found good.
  bool all_checks_good() const;

  // The error of a block that became unreadable.
  Status story_of(SlotIdx slot, int block) const;
  RetryCounts retries(int layer) const { return retries_[layer]; }
  std::vector<std::string> take_notices();
  int num_reading() const { return num_reading_; }
  // All blocks that were read, whatever became of them.
  std::int64_t bytes_read() const { return bytes_read_; }

 private:
  enum class State : std::uint8_t {
    kAbsent,
    kReading,
    kLanded,
    kLent,
    kChecked,
    kBad,  // written by check(), seen by the next poll()
    kUnreadable,
  };
  struct Block {
    std::atomic<State> state{State::kAbsent};
    std::uint8_t num_failures = 0;
    std::int8_t replica = 0;        // the copy that the last read came from
    std::int8_t first_replica = 0;  // the copy that failed first, when num_failures > 0
  };
  struct Slot {
    ExpertId id;
    ReadClass read_class = ReadClass::kDemand;
    float gate_up_priority = 0.0f, down_priority = 0.0f;
    bool wanted = false;  // false: what comes back unread stays so
    int num_reading = 0;
    int num_usable = 0;  // landed, lent or checked
    std::int64_t landed_bytes = 0;
  };
  struct Fault {
    std::uint32_t ticket;
    Error error;
  };

  static std::size_t at(SlotIdx slot) { return static_cast<std::size_t>(slot); }
  const ExpertShapes::Layer& shape(SlotIdx slot) const {
    return shapes_.layer(slots_[at(slot)].id.layer);
  }
  std::uint32_t tag(SlotIdx slot, int block) const {
    return static_cast<std::uint32_t>(slot) * static_cast<std::uint32_t>(max_blocks_) +
           static_cast<std::uint32_t>(block);
  }
  Block& block(SlotIdx slot, int block) { return blocks_[tag(slot, block)]; }
  const Block& block(SlotIdx slot, int block) const { return blocks_[tag(slot, block)]; }
  std::byte* address(SlotIdx slot, int block) const;

  float priority(const Slot& slot, int block) const;
  void queue_read(SlotIdx slot, int block);
  void take_in(BlockDone& done, EventSink sink);
  void collect_checks(EventSink sink);
  void fail(SlotIdx slot, int block, const Error& error, EventSink sink);
  void lose(SlotIdx slot, int block);
  Error fault_of(std::uint32_t ticket);
  void note_repair(SlotIdx slot, int block);

  const ExpertShapes& shapes_;
  const ExpertSource& source_;
  ExpertReader& reader_;
  const SlotArena& arena_;
  DeviceId device_;
  int max_blocks_;
  std::vector<Slot> slots_;
  std::vector<Block> blocks_;             // by tag, which is also the ticket
  std::vector<std::uint32_t> lent_;       // tickets whose check is awaited
  std::vector<BlockRead> queued_;         // gathered for submit()
  std::vector<BlockDone> done_;           // for reap
  std::vector<RetryCounts> retries_;      // by layer
  std::map<std::uint32_t, Error> story_;  // first failure of each block that had one; driver only
  std::vector<std::string> notices_;
  int num_notices_ = 0;
  int num_reading_ = 0;
  std::int64_t bytes_read_ = 0;

  std::atomic<std::uint32_t> num_checks_{0};  // checks done by workers
  std::uint32_t num_checks_seen_ = 0;
  std::mutex faults_mutex_;  // taken by a worker that found a bad block, and when one is looked up
  std::vector<Fault> faults_;
};

}  // namespace stoker
