// Time as policy code sees it: it comes in from outside, so that the engine, the simulator and
// tests run the same objects.
#pragma once

#include <chrono>
#include <cstdint>

namespace stoker {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Microseconds since some fixed point; never goes back.
  virtual std::int64_t now_us() const = 0;
};

class SteadyClock final : public Clock {
 public:
  std::int64_t now_us() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

// Stands still until somebody moves it. Not thread-safe.
class ManualClock final : public Clock {
 public:
  std::int64_t now_us() const override { return now_us_; }
  void advance(std::int64_t us) { now_us_ += us; }
  void advance_to(std::int64_t us) { now_us_ = us > now_us_ ? us : now_us_; }

 private:
  std::int64_t now_us_ = 0;
};

}  // namespace stoker
