// Numbered points in the order of a stream, for the host and for other streams to ask after.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/device.h"

namespace stoker::gpu {

// Tickets 1, 2, ... of one stream. Nothing is allocated and nothing waits after creation: the
// events stand in a ring, and a ticket that has lost its event to a later one is done when that one
// is, which is later than it might be said and never too early.
//
// With words, the stream writes the number of a ticket to host memory when it gets there, and
// asking is reading: no call of the driver, which takes about a microsecond and a lock that other
// threads' calls want.
class TicketRing {
 public:
  enum class Signal : std::uint8_t { kEvents, kWord };

  // For a stream of the current device; waits for what is in it. kWord becomes kEvents where the
  // driver cannot write words.
  static Result<TicketRing> create(int size, Signal signal, const Stream& stream);

  // Makes the next ticket: a point after all that `stream` was given so far.
  Status record(const Stream& stream);
  std::uint64_t last() const { return last_; }  // 0: none was made
  // Whether the stream has come there. A device that is lost is an error, also where words would
  // stay what they are.
  Result<bool> done(std::uint64_t ticket, const Stream& stream);
  // An event at the ticket or later, for another stream to wait for. With words it is recorded here
  // and now: who waits does so right after record(), and the others need no event. It stands for
  // this point until the next call. Requires: the stream's device is current.
  Result<const StreamEvent*> event_from(std::uint64_t ticket, const Stream& stream);

 private:
  TicketRing(std::vector<StreamEvent> events, PinnedBuffer word, void* write_value)
      : events_(std::move(events)), word_(std::move(word)), write_value_(write_value) {}
  Status write(std::uint64_t value, const Stream& stream);
  std::uint64_t read() const;

  std::vector<StreamEvent> events_;  // ticket t uses events_[t % size]; with words there is one
  PinnedBuffer word_;
  void* write_value_;  // cuStreamWriteValue64; null: no words
  std::uint64_t last_ = 0;
  std::uint64_t reached_ = 0;  // as far as has been seen
  std::uint64_t num_misses_ = 0;
};

}  // namespace stoker::gpu
