#include "tools/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace stoker::tools {
namespace {

constexpr int kBarWidth = 30;
constexpr auto kRedraw = std::chrono::milliseconds(100);

}  // namespace

ProgressBar::ProgressBar(std::string label, Unit unit)
    : label_(std::move(label)), unit_(unit), visible_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::update(std::int64_t done, std::int64_t total) {
  const Clock::time_point now = Clock::now();
  if (!visible_ || total <= 0 || (now - last_ < kRedraw && done < total)) return;
  last_ = now;
  drawn_ = true;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = seconds > 0.0 ? static_cast<double>(done) / seconds : 0.0;
  const double left = rate > 0.0 ? static_cast<double>(total - done) / rate : 0.0;
  const int filled = static_cast<int>(share * kBarWidth);
  const std::string speed = unit_ == Unit::kBytes ? fmt::format("{:.2f} GB/s", rate / 1e9)
                                                  : fmt::format("{:.0f} tok/s", rate);
  fmt::print(stderr, "\r\033[K{} [{:=<{}}{: <{}}] {:3.0f} %  {}  {:.0f} s left", label_, "", filled,
             "", kBarWidth - filled, share * 100.0, speed, left);
  std::fflush(stderr);
}

}  // namespace stoker::tools
