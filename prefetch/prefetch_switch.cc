#include "prefetch/prefetch_switch.h"

#include <algorithm>
#include <cmath>

namespace stoker {
namespace {

constexpr double kClear = 2.0;  // standard errors

}  // namespace

bool PrefetchSwitch::on() const {
  if (state_ == State::kTrial) return epochs_left_ == kRoundEpochs || epochs_left_ == 1;
  return state_ == State::kOn;
}

void PrefetchSwitch::observe(std::int64_t us) {
  if (state_ == State::kTrial && turn_ >= turns_per_epoch_ / 4)
    sides_[on() ? 1 : 0].add(static_cast<double>(us));
  if (++turn_ == turns_per_epoch_) end_epoch();
}

void PrefetchSwitch::enter(State state, int num_epochs) {
  state_ = state;
  epochs_left_ = num_epochs;
}

void PrefetchSwitch::end_epoch() {
  turn_ = 0;
  if (--epochs_left_ > 0) return;
  if (state_ == State::kTrial) {
    end_round();
    return;
  }
  was_on_ = state_ == State::kOn && num_trials_ > 0;
  num_rounds_ = 0;
  sides_ = {};
  enter(State::kTrial, kRoundEpochs);
}

void PrefetchSwitch::end_round() {
  const auto& [off, on] = sides_;
  const double scale = 1.0 / std::max(off.mean(), 1.0);
  gain_ = (off.mean() - on.mean()) * scale;
  const double error = std::sqrt(std::max(off.error() + on.error(), 0.0)) * scale;
  const double wanted = was_on_ ? kKeepGain : kMinGain;
  if (std::abs(gain_ - wanted) < kClear * error && ++num_rounds_ < kMaxRounds) {
    enter(State::kTrial, kRoundEpochs);
    return;
  }
  const bool first = ++num_trials_ == 1;
  if (gain_ >= wanted) {
    off_epochs_ = kOffEpochs;
    enter(State::kOn, kOnEpochs);
  } else {
    off_epochs_ = was_on_ || first ? kOffEpochs : std::min(2 * off_epochs_, kMaxOffEpochs);
    enter(State::kOff, off_epochs_);
  }
}

}  // namespace stoker
