#include "prefetch/prefetch_switch.h"

#include <algorithm>

namespace stoker {

bool PrefetchSwitch::on() const {
  if (state_ == State::kTrial) return epoch_ == 0 || epoch_ == 3;
  return state_ == State::kOn;
}

void PrefetchSwitch::observe(std::int64_t us) {
  if (state_ == State::kTrial && turn_ >= turns_per_epoch_ / 4) trial_us_[on() ? 1 : 0] += us;
  if (++turn_ == turns_per_epoch_) end_epoch();
}

void PrefetchSwitch::end_epoch() {
  turn_ = 0;
  ++epoch_;
  if (state_ == State::kTrial) {
    if (epoch_ == kTrialEpochs) end_trial();
  } else if (epoch_ == (state_ == State::kOn ? kOnEpochs : off_epochs_)) {
    was_on_ = state_ == State::kOn;
    state_ = State::kTrial;
    epoch_ = 0;
  }
}

void PrefetchSwitch::end_trial() {
  const auto [off_us, on_us] = trial_us_;
  gain_ = off_us > 0 ? 1.0 - static_cast<double>(on_us) / static_cast<double>(off_us) : 0.0;
  trial_us_ = {};
  ++num_trials_;
  epoch_ = 0;
  if (gain_ >= (was_on_ ? kKeepGain : kMinGain)) {
    state_ = State::kOn;
    off_epochs_ = kOffEpochs;
  } else {
    off_epochs_ =
        was_on_ || num_trials_ == 1 ? kOffEpochs : std::min(2 * off_epochs_, kMaxOffEpochs);
    state_ = State::kOff;
  }
}

}  // namespace stoker
