#include "gpu/device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "gpu/error.h"
#include "gpu/native.h"

namespace stoker::gpu {
namespace {

std::atomic<std::uint64_t> num_allocations = 0;  // of DeviceBuffers, by any thread

// What a query says: there, not there yet, or an error of the work before.
Result<bool> reached(cudaError_t error, std::string_view operation) {
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  RETURN_IF_ERROR(cuda_status(error, operation));
  return true;
}

// Copies and fills of the default stream may still run when their call returns, and our streams do
// not wait for it.
Status default_stream_done(std::string_view operation) {
  return cuda_status(cudaStreamSynchronize(cudaStreamLegacy), operation);
}

}  // namespace

Status check_gpu(int device) {
  int num_devices = 0;
  RETURN_IF_ERROR(cuda_status(cudaGetDeviceCount(&num_devices), "looking for devices"));
  if (device >= 0 && device < num_devices) return {};
  return make_error(ErrorCode::kNotFound, "there is no GPU {}: CUDA shows {}", device, num_devices);
}

Status use_device(int device) { return cuda_status(cudaSetDevice(device), "choosing the device"); }

// A failing release has nowhere to go; an error that matters shows up in the next call.
void StreamDeleter::operator()(void* stream) const {
  (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}
void EventDeleter::operator()(void* event) const {
  (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
}
void DeviceMemoryDeleter::operator()(void* data) const { (void)cudaFree(data); }
void PinnedMemoryDeleter::operator()(void* data) const { (void)cudaFreeHost(data); }

Result<Stream> Stream::create(bool overlaps) {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(
      cuda_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream"));
  return Stream(stream, overlaps);
}

Status Stream::synchronize() const {
  return cuda_status(cudaStreamSynchronize(native(*this)), "waiting for the device");
}

Result<bool> Stream::idle() const {
  return reached(cudaStreamQuery(native(*this)), "work of a stream");
}

Result<StreamEvent> StreamEvent::create(Timing timing) {
  cudaEvent_t event = nullptr;
  const unsigned flags = timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming;
  RETURN_IF_ERROR(cuda_status(cudaEventCreateWithFlags(&event, flags), "creating an event"));
  return StreamEvent(event);
}

Status StreamEvent::record(const Stream& stream) {
  return cuda_status(cudaEventRecord(native(*this), native(stream)), "recording an event");
}

Result<bool> StreamEvent::done() const {
  return reached(cudaEventQuery(native(*this)), "work before an event");
}

Status StreamEvent::synchronize() const {
  return cuda_status(cudaEventSynchronize(native(*this)), "waiting for an event");
}

Status StreamEvent::hold(const Stream& stream) const {
  return cuda_status(cudaStreamWaitEvent(native(stream), native(*this), 0),
                     "letting a stream wait for an event");
}

Result<DeviceBuffer> DeviceBuffer::create(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  void* data = nullptr;
  RETURN_IF_ERROR(cuda_status(cudaMalloc(&data, size), "allocating device memory"), "{} bytes",
                  size);
  DeviceBuffer buffer;
  buffer.data_.reset(data);
  buffer.bytes_ = bytes;
  buffer.allocation_ = ++num_allocations;
  RETURN_IF_ERROR(cuda_status(cudaMemset(data, 0, size), "clearing device memory"));
  RETURN_IF_ERROR(default_stream_done("clearing device memory"));
  return buffer;
}

Status DeviceBuffer::upload(std::int64_t offset, const void* src, std::int64_t bytes) {
  CHECK(offset >= 0 && bytes >= 0 && offset + bytes <= bytes_, "[{}, + {}) of {}", offset, bytes,
        bytes_);
  RETURN_IF_ERROR(cuda_status(
      cudaMemcpy(data() + offset, src, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice),
      "uploading"));
  return default_stream_done("uploading");
}

Status DeviceBuffer::grow(std::int64_t bytes) {
  if (bytes <= bytes_) return {};
  // Frees first: cudaFree waits for work that still uses the old memory.
  *this = DeviceBuffer();
  ASSIGN_OR_RETURN(*this, create(bytes));
  return {};
}

Result<PinnedBuffer> PinnedBuffer::create(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  void* data = nullptr;
  RETURN_IF_ERROR(cuda_status(cudaHostAlloc(&data, size, cudaHostAllocPortable),
                              "allocating pinned host memory"),
                  "{} bytes", size);
  std::memset(data, 0, size);
  PinnedBuffer buffer;
  buffer.data_.reset(data);
  buffer.bytes_ = bytes;
  return buffer;
}

bool is_pinned(const void* host) {
  cudaPointerAttributes attributes{};
  return cudaPointerGetAttributes(&attributes, host) == cudaSuccess &&
         attributes.type == cudaMemoryTypeHost;
}

StagingRing::StagingRing(PinnedBuffer buffer, StreamEvent first, StreamEvent second)
    : buffer_(std::move(buffer)), left_{std::move(first), std::move(second)} {}

Result<StagingRing> StagingRing::create(std::int64_t bytes) {
  ASSIGN_OR_RETURN(PinnedBuffer buffer, PinnedBuffer::create(bytes), "staging");
  ASSIGN_OR_RETURN(StreamEvent first, StreamEvent::create());
  ASSIGN_OR_RETURN(StreamEvent second, StreamEvent::create());
  return StagingRing(std::move(buffer), std::move(first), std::move(second));
}

Status StagingRing::take(std::int64_t bytes, const Stream& stream) {
  if (used_ + bytes <= buffer_.bytes() / 2) return {};
  RETURN_IF_ERROR(left_[half_].record(stream));
  half_ = 1 - half_;
  used_ = 0;
  return left_[half_].synchronize();  // returns at once the first time: never recorded
}

Status StagingRing::copy(void* device_dst, const void* src, std::int64_t bytes,
                         const Stream& stream) {
  const std::int64_t half_bytes = buffer_.bytes() / 2;
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t piece = std::min(bytes - done, half_bytes);
    RETURN_IF_ERROR(take(piece, stream));
    std::byte* through = buffer_.data() + half_ * half_bytes + used_;
    std::memcpy(through, static_cast<const std::byte*>(src) + done,
                static_cast<std::size_t>(piece));
    RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(static_cast<std::byte*>(device_dst) + done, through,
                        static_cast<std::size_t>(piece), cudaMemcpyHostToDevice, native(stream)),
        "copying a table to the device"));
    used_ += piece;
    done += piece;
  }
  return {};
}

}  // namespace stoker::gpu
