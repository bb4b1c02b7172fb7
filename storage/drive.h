// Drive: the reads of one drive, from wish to completion. Decides which is issued when; its engine
// moves the bytes. Everything here belongs to the drive's I/O thread (block_reader.cc runs it);
// only DriveLoad is seen by others.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/interface/expert_source.h"
#include "storage/depth_tuner.h"
#include "storage/engine.h"
#include "storage/extent.h"
#include "storage/read_queue.h"

namespace stoker::storage {

struct DriveLimits {
  std::int64_t demand_bytes = 0;       // in flight, as long as demanded reads wait; 0: what pays
  std::int64_t speculative_bytes = 0;  // in flight at most, when a read of another class is issued
};

// Time with something going on. Written by one thread, read by any.
class BusyClock {
 public:
  bool running() const { return (state_.load(std::memory_order_relaxed) & 1) != 0; }
  void start(std::int64_t now_us) { state_ = 2 * (total_us(now_us) - now_us) + 1; }
  void stop(std::int64_t now_us) { state_ = 2 * total_us(now_us); }
  std::int64_t total_us(std::int64_t now_us) const {
    const std::int64_t state = state_;
    return (state >> 1) + ((state & 1) != 0 ? now_us : 0);
  }

 private:
  // One word, so that nobody sees half a change. Even: twice the time; odd: twice the time less
  // that of the clock, plus one.
  std::atomic<std::int64_t> state_{0};
};

// Written by the I/O thread, `queued` also by who submits; read by anybody.
struct DriveLoad {
  std::atomic<std::int64_t> queued_demand_bytes{0};
  std::atomic<std::int64_t> queued_speculative_bytes{0};
  std::atomic<std::int64_t> reading_bytes{0};
  std::atomic<std::int64_t> bytes_read{0};
  BusyClock busy;  // with at least one read issued; the steady clock's time
  std::atomic<double> bytes_per_second{0.0};  // measured; 0: not known yet

  std::atomic<std::int64_t>& queued_bytes(ReadClass read_class) {
    return read_class == ReadClass::kDemand ? queued_demand_bytes : queued_speculative_bytes;
  }
};

class Drive {
 public:
  // `load` has counted the bytes of a read as queued before add() sees it. The engine was opened on
  // the source's files, in their order.
  Drive(const ExtentSource& source, std::unique_ptr<Engine> engine, DriveLimits limits,
        DriveLoad& load);

  Engine& engine() { return *engine_; }

  // Queues a read of a definite replica.
  void add(const QueuedRead& read);
  void promote(std::uint32_t tag, ReadClass read_class, float priority);
  void cancel(std::uint32_t tag);
  void cancel_all();

  // Issues what the limits allow.
  void issue();
  // Takes what the engine has completed, waiting for it (or for a wake) if asked to; goes on with
  // reads that came short.
  void reap(bool wait);
  // Nothing is queued or issued.
  bool idle() const { return queue_.empty() && num_issued_ == 0; }
  // Reads that have completed, for the caller to take out.
  std::vector<BlockDone>& done() { return done_; }

 private:
  struct Stretch {
    Extent extent;
    std::int64_t wanted = 0;  // bytes up to its end or the file's
    std::int64_t got = 0;
    int stalled = 0;  // completions in a row that brought nothing
  };
  struct Issued {
    BlockRead read;
    std::int64_t bytes = 0;
    std::array<Stretch, kMaxExtents> stretches;
    int num_pending = 0;  // stretches not complete; 0: the place is free
    std::optional<Error> error;
  };

  void issue(const QueuedRead& next, std::span<const Extent> extents);
  void collect(std::size_t place, std::size_t stretch);
  void complete(const ReadOpDone& op);
  std::optional<Error> progress(Issued& issued, Stretch& stretch, std::int32_t result);
  void finish(std::size_t place);
  void count_time();
  void measure(std::int64_t now_us);
  const ExtentFile& file_of(const Extent& extent) const;

  const ExtentSource& source_;
  std::unique_ptr<Engine> engine_;
  DriveLoad& load_;
  std::int64_t speculative_limit_;
  DepthTuner demand_limit_;

  ReadQueue queue_;
  std::vector<Issued> issued_;
  std::vector<std::size_t> free_places_;
  int num_issued_ = 0;
  int num_ops_ = 0;  // with the engine
  std::int64_t reading_bytes_ = 0;
  std::vector<ReadOpDone> ops_done_;
  std::vector<BlockDone> done_;

  std::int64_t came_bytes_ = 0;                // since the time was last counted
  bool full_ = false;                          // demanded reads wait for others to complete
  std::int64_t full_since_us_ = 0;             // 0: it is not
  std::int64_t full_us_ = 0, full_bytes_ = 0;  // time when it was, and what came then
};

}  // namespace stoker::storage
