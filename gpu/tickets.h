// Numbered points in the order of a stream, for the host and for other streams to ask after:
// tickets 1, 2, ... Nothing is allocated and nothing waits after creation. A device that is lost is
// an error of done().
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/device.h"

namespace stoker::gpu {

// By events in a ring: a ticket that has lost its event to a later one is done when that one is,
// which is later than it might be said and never too early.
class TicketRing {
 public:
  // For a stream of the current device.
  static Result<TicketRing> create(int size);

  // Makes the next ticket: a point after all that `stream` was given so far.
  Status record(const Stream& stream);
  std::uint64_t last() const { return last_; }  // 0: none was made
  // Whether the stream has come there.
  Result<bool> done(std::uint64_t ticket);

 private:
  explicit TicketRing(std::vector<StreamEvent> events) : events_(std::move(events)) {}

  std::vector<StreamEvent> events_;  // ticket t uses events_[t % size]
  std::uint64_t last_ = 0;
  std::uint64_t reached_ = 0;  // as far as has been seen
};

// By a number in host memory that the stream itself counts up: asking is reading, no call of the
// driver, which takes about a microsecond and a lock that other threads' calls want; and a graph
// may hold points, which are new tickets each time it is launched.
class TicketCounter {
 public:
  // For a stream of the current device.
  static Result<TicketCounter> create();

  // Lets `stream` count one up.
  Status enqueue(const Stream& stream) const;
  // Makes the next ticket, of what was enqueued, or is held by a graph that will be launched next.
  std::uint64_t take() { return ++last_; }
  std::uint64_t last() const { return last_; }  // 0: none was made
  Result<bool> done(std::uint64_t ticket, const Stream& stream);
  // An event of now, for another stream to wait for: whoever waits for a ticket does so when it is
  // the last. It stands for this point until the next call. Requires: the stream's device is
  // current.
  Result<const StreamEvent*> event_now(const Stream& stream);

 private:
  TicketCounter(StreamEvent event, PinnedBuffer word, DeviceBuffer count)
      : event_(std::move(event)), word_(std::move(word)), count_(std::move(count)) {}
  std::uint64_t counted() const;

  StreamEvent event_;
  PinnedBuffer word_;
  DeviceBuffer count_;
  std::uint64_t last_ = 0;
  std::uint64_t reached_ = 0;  // as far as has been seen
  std::uint64_t lost_ = 0;     // tickets that were never counted: something failed
  std::uint64_t num_misses_ = 0;
};

}  // namespace stoker::gpu
