// ExpertSource: where routed experts are read from, in block form (quant/expert_block.h), whatever
// form they are stored in; and ExpertReader, the queue of reads from it.
//
// An expert is read block by block into a *slot* of memory. What a drive delivers becomes usable by
// land(), which checks it and, for experts of a published checkpoint, re-lays it in place; so
// kernels and bits do not depend on where an expert came from.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/interface/expert_provider.h"

namespace stoker {

// What a read is for. Lower classes go first, whatever their priorities.
enum class ReadClass : std::uint8_t { kDemand, kNextLayer, kTwoAhead, kWarm };
inline constexpr int kNumReadClasses = 4;

inline constexpr int kAnyReplica = -1;

// A wish for one block.
struct BlockRead {
  std::uint32_t tag = 0;  // names the read; unique among the reader's unfinished ones
  ExpertId id;
  int block = 0;
  int replica = kAnyReplica;  // which copy; kAnyReplica: the one that promises to come first
  std::byte* dst = nullptr;   // takes ExpertSource::block_bytes(); aligned to 4 KiB
  ReadClass read_class = ReadClass::kDemand;
  float priority = 0.0f;  // within the class: higher first, then first come
};

enum class ReadOutcome : std::uint8_t { kRead, kCancelled, kFailed };

struct BlockDone {
  std::uint32_t tag = 0;
  ReadOutcome outcome = ReadOutcome::kRead;
  int replica = 0;  // the copy it came from
  Status status;    // kFailed: what the system said, with file and offset
};

// What a reader is doing and has done, summed over its drives.
struct ReaderLoad {
  std::int64_t queued_demand_bytes = 0;       // waiting to be issued
  std::int64_t queued_speculative_bytes = 0;  // the same, of every other class
  std::int64_t reading_bytes = 0;             // issued, not yet complete
  std::int64_t bytes_read = 0;                // since the reader was opened
  std::int64_t busy_us = 0;                   // time with at least one read issued, per drive
  int num_drives = 1;
  double bytes_per_second = 0.0;  // what all drives together promise; 0: not known yet
};

// A queue of block reads: demand first, then by class and priority; a block is the unit of
// cancellation. One owner thread submits and reaps; I/O goes on behind it. Destroying a reader
// waits for what has been issued.
class ExpertReader {
 public:
  virtual ~ExpertReader() = default;

  // Says that `memory` will hold slots, so that it can be registered with the kernel. From any
  // thread, while reads go on; optional.
  virtual Status register_memory(std::span<std::byte> memory) = 0;

  virtual void submit(std::span<const BlockRead> reads) = 0;
  // Moves a read that has not been issued to another class and priority. Unknown tags are ignored.
  virtual void promote(std::uint32_t tag, ReadClass read_class, float priority) = 0;
  // Takes a read back. It completes as kCancelled unless it was already issued. Unknown tags are
  // ignored.
  virtual void cancel(std::uint32_t tag) = 0;

  // Moves up to out.size() completed reads into `out` and returns how many.
  virtual std::size_t reap(std::span<BlockDone> out) = 0;
  // Waits until reap() has something or `timeout` has passed. Returns at once when nothing is under
  // way.
  virtual void wait(std::chrono::microseconds timeout) = 0;

  virtual ReaderLoad load() const = 0;
};

// Immutable after opening and thread-safe.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  // Row blocks of every expert of `layer` (a MoE layer), gate/up blocks first.
  virtual int num_blocks(int layer) const = 0;
  // Bytes of a slot that takes one expert of `layer`; a multiple of 4 KiB.
  virtual std::int64_t expert_bytes(int layer) const = 0;
  // Where a block lies in its slot, and what is read there; multiples of 4 KiB.
  virtual std::int64_t block_offset(int layer, int block) const = 0;
  virtual std::int64_t block_bytes(int layer, int block) const = 0;
  // The part that a landed block at `block_bytes` is. `use` is left 0.
  virtual ExpertPart part(int layer, int block, const std::byte* block_bytes,
                          DeviceId device) const = 0;
  // Copies of an expert's blocks that land() tells apart.
  virtual int num_replicas(ExpertId /*id*/) const { return 1; }

  // Makes a block that was read from `replica` to `bytes` usable: checks it and brings it into
  // block form. Once per read, by the thread that is about to use the block. kCorrupt names file,
  // offset, what was expected and what was found.
  virtual Status land(ExpertId id, int block, int replica, std::byte* bytes) const = 0;

  // Reads, checks and lays out a whole expert: `dst` takes expert_bytes(). Blocks until it is
  // there.
  virtual Status read(ExpertId id, std::byte* dst) const = 0;
};

}  // namespace stoker
