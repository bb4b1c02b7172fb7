// A request to stop, seen by everything that waits. Set from any thread (or a signal handler), read
// anywhere.
#pragma once

#include <atomic>

namespace stoker {

class CancelToken {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  void reset() { cancelled_.store(false, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace stoker
