// IdleWindows: how long the drive has nothing to do before each layer's turn, learned as it goes.
// That time, and no other, is what may be spent on guesses.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace stoker {

// Decode and sweeps have windows of their own. Driver thread.
class IdleWindows {
 public:
  explicit IdleWindows(int num_layers) {
    for (auto& windows : expected_us_) windows.assign(static_cast<std::size_t>(num_layers), 0.0f);
  }

  // `layer` demands: a window, if one was open, ends.
  void begin_turn(int layer, bool sweep, std::int64_t now_us) {
    if (seen_[sweep]) {
      const auto us =
          static_cast<float>(idle_since_us_ ? std::min(now_us - *idle_since_us_, kLongestUs) : 0);
      float& expected = expected_us_[sweep][static_cast<std::size_t>(layer)];
      expected += kWeight * (us - expected);
    }
    seen_ = {};
    seen_[sweep] = true;
    sweep_ = sweep;
    idle_since_us_.reset();
  }
  // Nothing that was demanded is under way any more.
  void drive_is_idle(std::int64_t now_us) {
    if (!idle_since_us_) idle_since_us_ = now_us;
  }
  // What is left of the window before the turn of `layer`, which comes next.
  std::int64_t left_us(int layer, std::int64_t now_us) const {
    if (!idle_since_us_) return 0;
    return std::max<std::int64_t>(whole_us(layer) - (now_us - *idle_since_us_), 0);
  }
  std::int64_t whole_us(int layer) const {
    return static_cast<std::int64_t>(expected_us_[sweep_][static_cast<std::size_t>(layer)]);
  }

 private:
  static constexpr float kWeight = 0.25f;                // of the latest window
  static constexpr std::int64_t kLongestUs = 1'000'000;  // somebody was thinking

  std::array<std::vector<float>, 2> expected_us_;  // [sweep][layer]
  std::array<bool, 2> seen_{};                     // of which kind the turn before was
  std::optional<std::int64_t> idle_since_us_;
  bool sweep_ = false;
};

}  // namespace stoker
