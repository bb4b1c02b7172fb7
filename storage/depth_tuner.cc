#include "storage/depth_tuner.h"

#include <algorithm>

#include "core/base/check.h"

namespace stoker::storage {
namespace {

constexpr std::int64_t kWindowUs = 20'000;
// Each is tried this often before one is settled for, and one of the others every so many windows
// from then on, which takes about one tenth of the time.
constexpr int kTrials = 3;
constexpr int kExploreEvery = 32;
constexpr double kWeight = 0.25;  // of a new window: drives change their speed within seconds
// The least depth that comes this near to the fastest is taken.
constexpr double kNearEnough = 0.97;

}  // namespace

DepthTuner::DepthTuner(std::span<const std::int64_t> candidates) {
  CHECK(!candidates.empty() && std::is_sorted(candidates.begin(), candidates.end()));
  for (const std::int64_t bytes : candidates) candidates_.push_back({bytes, 0.0, 0});
  current_ = candidates_.size() / 2;
}

void DepthTuner::add(std::int64_t bytes, std::int64_t us) {
  if (candidates_.size() == 1) return;
  if (settling_bytes_ > 0) {
    settling_bytes_ -= bytes;
    return;
  }
  window_bytes_ += bytes;
  window_us_ += us;
  if (window_us_ >= kWindowUs && window_bytes_ >= bytes_in_flight()) end_window();
}

void DepthTuner::end_window() {
  Candidate& tried = candidates_[current_];
  const double rate = static_cast<double>(window_bytes_) / static_cast<double>(window_us_);
  tried.rate = tried.num_windows == 0 ? rate : tried.rate + kWeight * (rate - tried.rate);
  ++tried.num_windows;
  ++num_windows_;
  window_bytes_ = 0;
  window_us_ = 0;
  const std::size_t next = this->next();
  // What is in flight was issued under the old limit.
  if (next != current_) settling_bytes_ = std::max(tried.bytes, candidates_[next].bytes);
  current_ = next;
}

std::size_t DepthTuner::next() {
  const auto fewest = std::min_element(
      candidates_.begin(), candidates_.end(),
      [](const Candidate& a, const Candidate& b) { return a.num_windows < b.num_windows; });
  if (fewest->num_windows < kTrials) {
    return static_cast<std::size_t>(fewest - candidates_.begin());
  }
  const std::size_t best = this->best();
  if (num_windows_ % kExploreEvery != 0) return best;
  do {
    explored_ = (explored_ + 1) % candidates_.size();
  } while (explored_ == best);
  return explored_;
}

std::size_t DepthTuner::best() const {
  double fastest = 0.0;
  for (const Candidate& candidate : candidates_) fastest = std::max(fastest, candidate.rate);
  std::size_t least = 0;
  while (candidates_[least].rate < kNearEnough * fastest) ++least;
  return least;
}

}  // namespace stoker::storage
