// PrefetchSwitch: finds out whether fetching ahead pays, and turns it off where it does not.
//
// What counts is not how often a guess is right but how long a turn takes from the demand for its
// experts to their release: computing what is there, felt wait for the rest, and the gates that the
// guesses come from. Turns are cut into epochs of a fixed number. A *trial* is four epochs, on,
// off, off, on (so that a drift falls on both sides alike); the first turns of an epoch are left
// out, because they still live on what the epoch before fetched.
//
//   trial --gain at least kMinGain--> on  --after kOnEpochs--> trial
//     |                                                         (now kept at gain kKeepGain or
//     more)
//     +-----------less--------------> off --after a pause-----> trial
//
// The pause begins with kOffEpochs and doubles with each trial in a row that fails, up to
// kMaxOffEpochs: where fetching ahead never pays, less than one turn in a hundred is spent on
// finding out. Without an idle moment of the drive nothing is fetched in the on epochs either.
#pragma once

#include <array>
#include <cstdint>

namespace stoker {

class PrefetchSwitch {
 public:
  static constexpr double kMinGain = 0.02;    // share of the time that must be saved to turn it on
  static constexpr double kKeepGain = 0.005;  // and to leave it on
  static constexpr int kOnEpochs = 32;
  static constexpr int kOffEpochs = 32;
  static constexpr int kMaxOffEpochs = 512;

  explicit PrefetchSwitch(int turns_per_epoch) : turns_per_epoch_(turns_per_epoch) {}

  bool on() const;
  // A turn of decode, from its demand to its release.
  void observe(std::int64_t us);

  // Share of a turn's time that fetching ahead saved in the last trial; negative: it cost.
  double gain() const { return gain_; }
  int num_trials() const { return num_trials_; }

 private:
  enum class State : std::uint8_t { kTrial, kOn, kOff };
  static constexpr int kTrialEpochs = 4;

  void end_epoch();
  void end_trial();

  int turns_per_epoch_;
  State state_ = State::kTrial;
  bool was_on_ = false;  // before the trial
  int epoch_ = 0;        // of the state
  int turn_ = 0;         // of the epoch
  int off_epochs_ = kOffEpochs;
  std::array<std::int64_t, 2> trial_us_{};  // off, on
  double gain_ = 0.0;
  int num_trials_ = 0;
};

}  // namespace stoker
