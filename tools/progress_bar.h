// A progress line on standard error with rate and time left; silent when standard error is not a
// terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "core/base/progress.h"

namespace stoker::tools {

class ProgressBar {
 public:
  enum class Unit { kBytes, kTokens };
  ProgressBar(std::string label, Unit unit);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::int64_t done, std::int64_t total);
  // For APIs that take a ProgressFn; refers to this object.
  ProgressFn callback() {
    return [this](std::int64_t done, std::int64_t total) { update(done, total); };
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Unit unit_;
  bool visible_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace stoker::tools
