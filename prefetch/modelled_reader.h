// ModelledReader: an ExpertReader whose drives are numbers. Reads complete when a drive of the
// given bandwidth, latency and depth would complete them, by a Clock, and cost no CPU: the
// simulator runs the manager against it on a ManualClock, benchmarks on the real one.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "core/base/clock.h"
#include "core/interface/expert_source.h"

namespace stoker {

// A read that is issued takes `latency_us` to its first byte; data then flows at
// `bytes_per_second`, to one read after the other in the order of issue. So a drive is as fast as
// it can be once `depth` reads cover its latency.
struct ModelledDrive {
  double bytes_per_second = 7e9;
  std::int64_t latency_us = 100;
  int depth = 16;  // reads issued at once, at most
};

struct ModelledReaderOptions {
  std::vector<ModelledDrive> drives = {ModelledDrive{}};
  // What a drive has issued at most for anything but demand; a single block is always allowed.
  std::int64_t max_speculative_bytes = std::int64_t{4} << 20;
  // Which drive holds an expert; empty: they take turns.
  std::function<int(ExpertId)> drive_of{};
  // Fills `dst` when a read completes; empty: nothing is written, and dst may be null.
  std::function<Status(const BlockRead&)> deliver{};
  // Lets time pass while wait() waits; empty: wait() returns at once.
  std::function<void(std::chrono::microseconds)> sleep{};
};

// The queue keeps the discipline of every reader: demand first, then by class and priority, then
// first come; what is issued is not taken back.
class ModelledReader final : public ExpertReader {
 public:
  // `source` gives the sizes of blocks. Both outlive the reader.
  ModelledReader(const ExpertSource& source, const Clock& clock, ModelledReaderOptions options);

  Status register_memory(std::span<std::byte> /*memory*/) override { return {}; }
  void submit(std::span<const BlockRead> reads) override;
  void promote(std::uint32_t tag, ReadClass read_class, float priority) override;
  void cancel(std::uint32_t tag) override;
  std::size_t reap(std::span<BlockDone> out) override;
  void wait(std::chrono::microseconds timeout) override;
  ReaderLoad load() const override;

  // When the next issued read completes, or kNever: how far a simulator moves its clock while
  // nothing is runnable.
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  std::int64_t next_event_us() const;

 private:
  // Order of issue: class, then priority, then first come.
  struct Key {
    ReadClass read_class;
    float minus_priority;
    std::uint64_t arrival;
    auto operator<=>(const Key&) const = default;
  };
  struct Issued {
    BlockRead read;
    std::int64_t bytes = 0;
    double done_us = 0.0;
  };
  struct Drive {
    ModelledDrive spec;
    std::map<Key, BlockRead> queue;
    std::deque<Issued> issued;  // completes in this order
    double free_us = 0.0;       // when its data path has served all that is issued
    double busy_since_us = 0.0;
    std::int64_t busy_us = 0;
    std::int64_t speculative_bytes = 0;  // issued
  };
  struct Queued {
    int drive = 0;
    Key key;
  };

  int drive_of(ExpertId id) const;
  std::int64_t bytes_of(const BlockRead& read) const;
  std::int64_t& queued_bytes(ReadClass read_class) {
    return read_class == ReadClass::kDemand ? queued_demand_bytes_ : queued_speculative_bytes_;
  }
  // Lets the drives work up to now.
  void advance();
  void issue(Drive& drive, double at_us);
  void complete(Drive& drive, const Issued& issued);

  const ExpertSource& source_;
  const Clock& clock_;
  ModelledReaderOptions options_;
  std::vector<Drive> drives_;
  std::map<std::uint32_t, Queued> queued_;  // by tag
  std::deque<BlockDone> done_;
  std::uint64_t num_arrivals_ = 0;
  std::int64_t queued_demand_bytes_ = 0, queued_speculative_bytes_ = 0;
  std::int64_t bytes_read_ = 0;
};

}  // namespace stoker
