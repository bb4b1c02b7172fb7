// Engine: how reads reach the kernel. The ring (uring_engine.h) is one, a pool of threads that call
// pread() the other (pread_engine.h).
//
// Three verbs: collect() puts a read into a batch, submit() hands the batch over, reap() takes what
// has completed. All of them, bind() and register_memory() belong to one thread; wake() is for the
// others. An engine knows file numbers and addresses, nothing of experts; it neither continues a
// short read nor tries again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/base/error.h"

namespace stoker::storage {

// A read of at most 1 GiB. With direct I/O offset, address and size are multiples of 4 KiB.
struct ReadOp {
  std::uint64_t user = 0;  // comes back in ReadOpDone
  int file = 0;            // index into the files the engine was opened with
  std::int64_t offset = 0;
  std::span<std::byte> dst;
};

struct ReadOpDone {
  std::uint64_t user = 0;
  std::int32_t result = 0;  // bytes read, 0 at the end of the file; negative: -errno
};

// Destroy it only when no read is under way: the kernel writes to memory that it does not own.
class Engine {
 public:
  virtual ~Engine() = default;

  virtual std::string_view name() const = 0;
  // Reads that may be under way at once, collected ones included.
  virtual int capacity() const = 0;

  // Makes the calling thread the one that drives the engine. First call, once.
  virtual void bind() = 0;
  // Registers memory with the kernel, so that reads into it need no page tables walked. Memory that
  // overlaps registered memory takes its place. kUnsupported and kResource say why it cannot be;
  // reads into such memory work all the same.
  virtual Status register_memory(std::span<std::byte> memory) = 0;

  // Requires: fewer than capacity() reads are under way.
  virtual void collect(const ReadOp& op) = 0;
  virtual void submit() = 0;
  // Moves completed reads to `out` and returns how many. With `wait` it returns only when there is
  // one, or after a wake().
  virtual std::size_t reap(std::span<ReadOpDone> out, bool wait) = 0;

  // Ends a reap() that waits, or the next one. From any thread.
  virtual void wake() = 0;
};

}  // namespace stoker::storage
