// Owners of what CUDA hands out: streams, events, device and pinned memory. All of them only move.
// Handles travel as void*, so that callers need no CUDA headers. Each belongs to the device that is
// current when it is created; use_device() makes a device current for the calling thread.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/error.h"

namespace stoker::gpu {

// Whether the driver shows a GPU of that index.
Status check_gpu(int device);
Status use_device(int device);

struct StreamDeleter {
  void operator()(void* stream) const;
};
struct EventDeleter {
  void operator()(void* event) const;
};
struct DeviceMemoryDeleter {
  void operator()(void* data) const;
};
struct PinnedMemoryDeleter {
  void operator()(void* data) const;
};

// An order of device work that does not wait for the default stream.
class Stream {
 public:
  // `overlaps`: its kernels may start before the one before is complete (kernels_may_overlap();
  // kernels/common/overlap.cuh).
  static Result<Stream> create(bool overlaps = false);
  void* handle() const { return handle_.get(); }  // a cudaStream_t
  bool overlaps() const { return overlaps_; }
  Status synchronize() const;
  Result<bool> idle() const;  // everything enqueued has come to its end

 private:
  Stream(void* handle, bool overlaps) : handle_(handle), overlaps_(overlaps) {}
  std::unique_ptr<void, StreamDeleter> handle_;
  bool overlaps_;
};

// A point in a stream. With timing it is dearer.
class StreamEvent {
 public:
  enum class Timing : std::uint8_t { kOff, kOn };
  static Result<StreamEvent> create(Timing timing = Timing::kOff);
  void* handle() const { return handle_.get(); }  // a cudaEvent_t
  Status record(const Stream& stream);
  Result<bool> done() const;
  Status synchronize() const;
  // Later work of `stream` waits for this event.
  Status hold(const Stream& stream) const;

 private:
  explicit StreamEvent(void* handle) : handle_(handle) {}
  std::unique_ptr<void, EventDeleter> handle_;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static Result<DeviceBuffer> create(std::int64_t bytes);  // zeroed; blocks

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::int64_t bytes() const { return bytes_; }
  // No other allocation of this process has had it, whatever its address. 0: there is none.
  std::uint64_t allocation() const { return allocation_; }
  void* release() { return data_.release(); }  // to be given to DeviceMemoryDeleter

  // Copies from host memory to byte `offset`; done when it returns.
  Status upload(std::int64_t offset, const void* src, std::int64_t bytes);
  // At least `bytes` large; what it held is lost if it grows.
  Status grow(std::int64_t bytes);

 private:
  std::unique_ptr<void, DeviceMemoryDeleter> data_;
  std::int64_t bytes_ = 0;
  std::uint64_t allocation_ = 0;
};

// Host memory that the device reads and writes without a copy in between. Zeroed.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static Result<PinnedBuffer> create(std::int64_t bytes);

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::int64_t bytes() const { return bytes_; }
  void* release() { return data_.release(); }  // to be given to PinnedMemoryDeleter

 private:
  std::unique_ptr<void, PinnedMemoryDeleter> data_;
  std::int64_t bytes_ = 0;
};

// Whether kernels can read and write this host memory, at this address.
bool is_pinned(const void* host);

// Takes small tables out of the caller's hands: copy() has read `src` when it returns, and the
// device copy happens in stream order. Two halves of pinned memory; it waits only when the device
// is a whole half behind.
class StagingRing {
 public:
  static Result<StagingRing> create(std::int64_t bytes);
  Status copy(void* device_dst, const void* src, std::int64_t bytes, const Stream& stream);

 private:
  StagingRing(PinnedBuffer buffer, StreamEvent first, StreamEvent second);
  Status take(std::int64_t bytes, const Stream& stream);  // makes room in the current half

  PinnedBuffer buffer_;
  StreamEvent left_[2];  // the copies out of a half, when it was last left
  int half_ = 0;
  std::int64_t used_ = 0;  // of the current half
};

}  // namespace stoker::gpu
