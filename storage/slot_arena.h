// HostSlotArena: slots in RAM, in segments of at most 1 GiB (io_uring takes no larger buffers) that
// no slot straddles, on huge pages where the system allows, spread over the NUMA nodes if there are
// several. Slots come into being in the background, stretch by stretch.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/interface/slot_arena.h"
#include "storage/numa.h"

namespace stoker::storage {

struct SlotArenaOptions {
  std::int64_t budget_bytes = 0;  // never exceeded
  std::int64_t slot_bytes = 0;    // a multiple of 4 KiB, at most 1 GiB
  std::int64_t segment_bytes = std::int64_t{1} << 30;
};

class HostSlotArena final : public SlotArena {
 public:
  // As many slots as the budget holds. kInvalidArgument: not even one.
  static Result<std::unique_ptr<HostSlotArena>> create(const SlotArenaOptions& options);
  ~HostSlotArena() override;

  // Starts the growth. `prepare` is called on the arena's thread with each stretch of new memory
  // before its slots become usable, so that it can be registered or pinned; what it reports is for
  // its owner to say, the memory is used all the same. Once.
  void start(std::function<void(std::span<std::byte>)> prepare);
  // Ends the growth where it is. Call it before what `prepare` refers to goes away.
  void stop();

  int num_slots() const override { return num_slots_; }
  std::int64_t slot_bytes() const override { return slot_bytes_; }
  int num_usable() const override { return num_usable_.load(std::memory_order_acquire); }
  std::byte* slot(int index) const override;
  // kResource: memory ran short; the usable slots stay as they are.
  Status status() const override;

 private:
  struct Unmap {
    std::size_t bytes = 0;
    void operator()(std::byte* memory) const;
  };
  using Segment = std::unique_ptr<std::byte, Unmap>;

  explicit HostSlotArena(const SlotArenaOptions& options);
  void give_up(Error error);
  void grow(const std::function<void(std::span<std::byte>)>& prepare);
  Status add_stretch(int first_slot, int end_slot,
                     const std::function<void(std::span<std::byte>)>& prepare);
  Result<Segment> map(std::int64_t bytes) const;

  std::int64_t slot_bytes_;
  int num_slots_;
  int segment_slots_;
  int stretch_slots_;
  NodeInterleave interleave_;
  std::vector<Segment> segments_;  // each written before its slots become usable
  std::atomic<int> num_usable_{0};
  mutable std::mutex mutex_;
  std::optional<Error> error_;  // guarded by mutex_
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stoker::storage
