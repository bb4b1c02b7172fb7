#include "gpu/tickets.h"

#include <algorithm>
#include <atomic>

#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

// A lost device counts no further. Somebody who waits asks every microsecond or less, so this
// notices within a millisecond or so and costs nothing.
constexpr std::uint64_t kMissesPerQuery = 1000;

}  // namespace

Result<TicketRing> TicketRing::create(int size) {
  CHECK(size > 0, "a ring of {}", size);
  std::vector<StreamEvent> events;
  for (int i = 0; i < size; ++i) {
    ASSIGN_OR_RETURN(StreamEvent event, StreamEvent::create());
    events.push_back(std::move(event));
  }
  return TicketRing(std::move(events));
}

Status TicketRing::record(const Stream& stream) {
  const std::uint64_t ticket = last_ + 1;
  RETURN_IF_ERROR(events_[ticket % events_.size()].record(stream));
  last_ = ticket;
  return {};
}

Result<bool> TicketRing::done(std::uint64_t ticket) {
  CHECK(ticket <= last_, "ticket {} of {}", ticket, last_);
  if (ticket <= reached_) return true;
  ASSIGN_OR_RETURN(const bool done, events_[ticket % events_.size()].done());
  if (done) reached_ = ticket;
  return done;
}

Result<TicketCounter> TicketCounter::create() {
  ASSIGN_OR_RETURN(StreamEvent event, StreamEvent::create());
  ASSIGN_OR_RETURN(PinnedBuffer word, PinnedBuffer::create(sizeof(std::uint64_t)),
                   "the word of a stream");
  ASSIGN_OR_RETURN(DeviceBuffer count, DeviceBuffer::create(sizeof(std::uint64_t)));
  return TicketCounter(std::move(event), std::move(word), std::move(count));
}

Status TicketCounter::enqueue(const Stream& stream) const {
  // Pinned memory has the same address on the host and on every device.
  return launch_count_up({reinterpret_cast<std::uint64_t*>(count_.data()),
                          reinterpret_cast<std::uint64_t*>(word_.data())},
                         stream);
}

std::uint64_t TicketCounter::counted() const {
  return lost_ + std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(word_.data()))
                     .load(std::memory_order_acquire);
}

Result<bool> TicketCounter::done(std::uint64_t ticket, const Stream& stream) {
  CHECK(ticket <= last_, "ticket {} of {}", ticket, last_);
  if (ticket <= reached_) return true;
  reached_ = std::max(reached_, counted());
  if (ticket <= reached_) return true;
  if (++num_misses_ % kMissesPerQuery != 0) return false;
  ASSIGN_OR_RETURN(const bool idle, stream.idle());
  if (!idle) return false;
  lost_ += last_ - counted();
  reached_ = last_;
  return true;
}

Result<const StreamEvent*> TicketCounter::event_now(const Stream& stream) {
  RETURN_IF_ERROR(event_.record(stream));
  return &event_;
}

}  // namespace stoker::gpu
