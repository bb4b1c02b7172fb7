// ModelledReader: an ExpertReader whose drives are numbers. Reads complete when a drive of the
// given bandwidth, latency and depth would complete them, by a Clock, and cost no CPU: the
// simulator runs the manager against it on a ManualClock, benchmarks on the real one.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <vector>

#include "core/base/clock.h"
#include "core/interface/expert_source.h"

namespace stoker {

// A read is issued, waits `latency_us`, and then shares the drive with the others issued: data
// flows at `bytes_per_second` in the order of issue.
struct ModelledDrive {
  double bytes_per_second = 7e9;
  std::int64_t latency_us = 100;
  int depth = 16;  // reads issued at once
};

struct ModelledReaderOptions {
  std::vector<ModelledDrive> drives = {{}};
  // Bytes a drive has issued at most for anything but demand; one block is always allowed.
  std::int64_t max_speculative_bytes = std::int64_t{4} << 20;
  // Which drive holds an expert; empty: they take turns.
  std::function<int(ExpertId)> drive_of;
  // Fills read.dst when a read completes; empty: nothing is written, and dst may be null.
  std::function<Status(const BlockRead&)> deliver;
  // Lets time pass while wait() waits; empty: wait() returns at once.
  std::function<void(std::chrono::microseconds)> sleep;
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
  static constexpr std::int64_t kNever = INT64_MAX;
  std::int64_t next_event_us() const;

 private:
  struct Impl;
};

}  // namespace stoker
