// An ExpertReader over any ExpertSource, and an arena, both in memory: reads complete when a test
// reaps them, in the order, after the delays and with the faults that the test asks for.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/interface/expert_source.h"
#include "core/interface/slot_arena.h"

namespace stoker::test {

class MemoryArena final : public SlotArena {
 public:
  MemoryArena(int num_slots, std::int64_t slot_bytes);

  int num_slots() const override { return num_slots_; }
  std::int64_t slot_bytes() const override { return slot_bytes_; }
  int num_usable() const override { return num_usable_; }
  std::byte* slot(int index) const override { return memory_.get() + index * slot_bytes_; }
  Status status() const override { return status_; }

  // All slots are usable from the start, unless a test takes some back before anybody has looked.
  void set_usable(int num_usable) { num_usable_ = num_usable; }
  void fail(Status status) { status_ = std::move(status); }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  int num_slots_, num_usable_;
  std::int64_t slot_bytes_;
  std::unique_ptr<std::byte, Free> memory_;
  Status status_;
};

enum class ReadFault : std::uint8_t { kNone, kFails, kFlipsABit };

struct MemoryReaderOptions {
  unsigned seed = 1;
  // Reads issued at once: these complete in any order and cannot be taken back. The others wait in
  // the order of their class and priority.
  int depth = 8;
  bool shuffled = false;    // issued reads complete in random order, else first come
  int max_per_reap = 1000;  // a reap completes at most a random number up to this
  bool keeps_log = true;    // of issued()
  // What happens to a read from a copy.
  std::function<ReadFault(const BlockRead& read, int replica)> fault{};
};

class MemoryReader final : public ExpertReader {
 public:
  explicit MemoryReader(const ExpertSource& source, MemoryReaderOptions options = {});

  Status register_memory(std::span<std::byte> /*memory*/) override { return {}; }
  void submit(std::span<const BlockRead> reads) override;
  void promote(std::uint32_t tag, ReadClass read_class, float priority) override;
  void cancel(std::uint32_t tag) override;
  std::size_t reap(std::span<BlockDone> out) override;
  void wait(std::chrono::microseconds /*timeout*/) override {}
  ReaderLoad load() const override;

  // Makes an expert's bytes now rather than at its first read.
  void prepare(ExpertId id) { bytes_of(id); }
  // Every read that was issued, in that order.
  const std::vector<BlockRead>& issued() const { return issued_; }
  void forget_issued() { issued_.clear(); }
  std::size_t num_unfinished() const {
    return queued_.size() + reading_.size() + cancelled_.size();
  }
  // Nothing is issued, and nothing completes, until it is let go again.
  void hold(bool held) { held_ = held; }

 private:
  void issue();
  void complete(const BlockRead& read, BlockDone& done);
  const std::vector<std::byte>& bytes_of(ExpertId id);

  const ExpertSource& source_;
  MemoryReaderOptions options_;
  std::mt19937 random_;
  std::vector<BlockRead> queued_, reading_;
  std::vector<std::uint32_t> cancelled_;
  std::vector<BlockRead> issued_;
  std::map<ExpertId, std::vector<std::byte>> experts_;
  std::int64_t bytes_read_ = 0;
  bool held_ = false;
};

}  // namespace stoker::test
