// UringEngine: reads through an io_uring, with registered files and, where the kernel lets us,
// registered memory. Needs liburing 2.3 and nothing newer.
#pragma once

#include <memory>
#include <vector>

#include "core/base/descriptor.h"
#include "storage/engine.h"

struct io_uring;

namespace stoker::storage {

class UringEngine final : public Engine {
 public:
  // `files` stay open while the engine lives. kUnsupported: the kernel (or what guards it, in a
  // container) refuses io_uring.
  static Result<std::unique_ptr<UringEngine>> open(std::span<const int> files);

  ~UringEngine() override;

  std::string_view name() const override { return "uring"; }
  int capacity() const override;
  void bind() override;
  Status register_memory(std::span<std::byte> memory) override;
  void collect(const ReadOp& op) override;
  void submit() override;
  std::size_t reap(std::span<ReadOpDone> out, bool wait) override;
  void wake() override;

 private:
  // Registered memory, by address.
  struct Region {
    const std::byte* begin = nullptr;
    const std::byte* end = nullptr;
    int index = 0;  // in the ring's table of buffers
  };

  UringEngine() = default;
  void register_files();
  void arm_wake();
  void forget_overlapping(std::span<std::byte> memory);
  const Region* region_of(std::span<const std::byte> dst) const;
  std::size_t take_completed(std::span<ReadOpDone> out, bool& woken);

  std::unique_ptr<io_uring> ring_;
  std::vector<int> files_;
  bool files_registered_ = false;
  Descriptor wake_;               // an eventfd
  std::uint64_t wake_count_ = 0;  // where the ring reads the eventfd to
  bool buffer_table_ = false;
  std::vector<Region> regions_;  // ascending
  std::vector<int> free_buffers_;
  int next_buffer_ = 0;
};

}  // namespace stoker::storage
