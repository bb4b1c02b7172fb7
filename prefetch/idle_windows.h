// IdleWindows: how long the drive has nothing to do before each layer's turn, learned as it goes.
// That time, and no other, is what may be spent on guesses.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace stoker {

// Driver thread.
class IdleWindows {
 public:
  explicit IdleWindows(int num_layers)
      : decode_us_(static_cast<std::size_t>(num_layers), kUnknown) {}

  // `layer` demands: a window, if one was open, ends. Turns of decode and of sweeps are learned
  // apart. Layers differ in decode, where the first also waits for the head and the sampler; a
  // sweep comes to a layer once and goes by what the layer before saw.
  void begin_turn(int layer, bool sweep, std::int64_t now_us) {
    const auto us =
        static_cast<float>(idle_since_us_ ? std::min(now_us - *idle_since_us_, kLongestUs) : 0);
    if (num_turns_ > 0 && sweep == sweep_) {
      if (sweep) {
        learn(sweep_us_, us, kSweepWeight);
      } else {
        learn(decode_us_[layer], us, kWeight);
        learn(any_decode_us_, us, kWeight);
      }
    }
    ++num_turns_;
    sweep_ = sweep;
    idle_since_us_.reset();
  }
  // Nothing that was demanded is under way any more.
  void drive_is_idle(std::int64_t now_us) {
    if (!idle_since_us_) idle_since_us_ = now_us;
  }
  // The window before the turn of `layer`, and what is left of it if that is the next turn.
  std::int64_t whole_us(int layer) const {
    const float layers_own = decode_us_[layer];
    const float us = sweep_ ? sweep_us_ : layers_own == kUnknown ? any_decode_us_ : layers_own;
    return static_cast<std::int64_t>(std::max(us, 0.0f));
  }
  std::int64_t left_us(int layer, std::int64_t now_us) const {
    if (!idle_since_us_) return 0;
    return std::max<std::int64_t>(whole_us(layer) - (now_us - *idle_since_us_), 0);
  }

 private:
  static constexpr float kUnknown = -1.0f;
  static constexpr float kWeight = 0.25f, kSweepWeight = 0.75f;  // of the latest window
  static constexpr std::int64_t kLongestUs = 1'000'000;          // somebody was thinking

  static void learn(float& expected_us, float us, float weight) {
    expected_us = expected_us == kUnknown ? us : expected_us + weight * (us - expected_us);
  }

  std::vector<float> decode_us_;  // by layer
  float any_decode_us_ = kUnknown, sweep_us_ = kUnknown;
  std::int64_t num_turns_ = 0;
  bool sweep_ = false;  // of the latest turn
  std::optional<std::int64_t> idle_since_us_;
};

}  // namespace stoker
