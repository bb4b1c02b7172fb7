#include "gpu/tickets.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>

#include "gpu/error.h"

namespace stoker::gpu {
namespace {

using WriteValue = PFN_cuStreamWriteValue64_v11070;
constexpr unsigned kWriteValueVersion = 11070;

// A lost device writes no word. Somebody who waits asks every microsecond or less, so this notices
// within a millisecond or so and costs nothing.
constexpr std::uint64_t kMissesPerQuery = 1000;

// The driver's function, found at run time so that the program starts without a driver.
void* find_write_value() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuStreamWriteValue64", &found, kWriteValueVersion, cudaEnableDefault, &result);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  return result == cudaDriverEntryPointSuccess ? found : nullptr;
}

}  // namespace

Result<TicketRing> TicketRing::create(int size, Signal signal, const Stream& stream) {
  CHECK(size > 0, "a ring of {}", size);
  std::vector<StreamEvent> events;
  const auto add_events = [&](int count) -> Status {
    while (static_cast<int>(events.size()) < count) {
      ASSIGN_OR_RETURN(StreamEvent event, StreamEvent::create());
      events.push_back(std::move(event));
    }
    return {};
  };
  RETURN_IF_ERROR(add_events(1));
  if (void* const write_value = signal == Signal::kWord ? find_write_value() : nullptr) {
    ASSIGN_OR_RETURN(PinnedBuffer word, PinnedBuffer::create(sizeof(std::uint64_t)),
                     "the word of a stream");
    TicketRing ring(std::move(events), std::move(word), write_value);
    // A device or a driver that cannot do it says so, or does nothing.
    const bool written = ring.write(1, stream).ok();
    RETURN_IF_ERROR(stream.synchronize());
    if (written && ring.read() == 1) {
      *reinterpret_cast<std::uint64_t*>(ring.word_.data()) = 0;
      return ring;
    }
    events = std::move(ring.events_);
  }
  RETURN_IF_ERROR(add_events(size));
  return TicketRing(std::move(events), PinnedBuffer(), nullptr);
}

Status TicketRing::write(std::uint64_t value, const Stream& stream) {
  // Pinned memory has the same address on the host and on every device.
  const CUresult result = reinterpret_cast<WriteValue>(write_value_)(
      static_cast<cudaStream_t>(stream.handle()), reinterpret_cast<CUdeviceptr>(word_.data()),
      value, CU_STREAM_WRITE_VALUE_DEFAULT);
  if (result == CUDA_SUCCESS) return {};
  return make_error(ErrorCode::kIo, "CUDA: letting a stream write a word: driver error {}",
                    static_cast<int>(result));
}

std::uint64_t TicketRing::read() const {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(word_.data()))
      .load(std::memory_order_acquire);
}

Status TicketRing::record(const Stream& stream) {
  const std::uint64_t ticket = last_ + 1;
  RETURN_IF_ERROR(write_value_ != nullptr ? write(ticket, stream)
                                          : events_[ticket % events_.size()].record(stream));
  last_ = ticket;
  return {};
}

Result<bool> TicketRing::done(std::uint64_t ticket, const Stream& stream) {
  CHECK(ticket <= last_, "ticket {} of {}", ticket, last_);
  if (ticket <= reached_) return true;
  if (write_value_ == nullptr) {
    ASSIGN_OR_RETURN(const bool done, events_[ticket % events_.size()].done());
    if (done) reached_ = ticket;
    return done;
  }
  reached_ = std::max(reached_, read());
  if (ticket <= reached_) return true;
  if (++num_misses_ % kMissesPerQuery != 0) return false;
  ASSIGN_OR_RETURN(const bool idle, stream.idle());
  if (idle) reached_ = last_;
  return idle;
}

Result<const StreamEvent*> TicketRing::event_from(std::uint64_t ticket, const Stream& stream) {
  CHECK(ticket > 0 && ticket <= last_, "ticket {} of {}", ticket, last_);
  StreamEvent& event = events_[ticket % events_.size()];
  if (write_value_ != nullptr) RETURN_IF_ERROR(event.record(stream));
  return &event;
}

}  // namespace stoker::gpu
