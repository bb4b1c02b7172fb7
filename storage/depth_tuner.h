// DepthTuner: finds how much a drive should have in flight, by trying while it works. Less than it
// needs leaves it idle; more than it needs makes whoever comes next wait longer, and some drives
// slower. Takes its time from outside; not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace stoker::storage {

class DepthTuner {
 public:
  // Amounts to try, ascending; one: there is nothing to find.
  explicit DepthTuner(std::span<const std::int64_t> candidates);

  // What to have in flight now.
  std::int64_t bytes_in_flight() const { return candidates_[current_].bytes; }
  // `bytes` came in `us`, in which more was always wished for than in flight.
  void add(std::int64_t bytes, std::int64_t us);

 private:
  struct Candidate {
    std::int64_t bytes = 0;
    double rate = 0.0;  // bytes per microsecond
    int num_windows = 0;
  };
  void end_window();
  std::size_t best() const;
  std::size_t next();

  std::vector<Candidate> candidates_;
  std::size_t current_ = 0;
  std::size_t explored_ = 0;  // last
  int num_windows_ = 0;
  std::int64_t settling_bytes_ = 0;  // to come before a change can be seen
  std::int64_t window_bytes_ = 0, window_us_ = 0;
};

}  // namespace stoker::storage
