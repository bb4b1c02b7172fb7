// PrefetchSwitch: finds out whether fetching ahead pays, and turns it off where it does not.
//
// What counts is not how often a guess is right but how long a turn takes from the demand for its
// experts to their release: computing what is there, felt wait for the rest, and the gates that the
// guesses come from. Turns of decode are cut into epochs. A *trial* runs rounds of four epochs, on,
// off, off, on (so that a drift falls on both sides alike), until the difference stands clear of
// its scatter or kMaxRounds have been run. The first turns of an epoch are left out: they live on
// what the epoch before fetched.
//
//   begin: on, for kFirstOnEpochs -> trial --gain kMinGain--> on, for kOnEpochs -> trial
//                                     |                          (kKeepGain is enough to stay on)
//                                     +--less--> off, for kOffEpochs -> trial
//
// Each trial in a row that fails doubles the next pause, up to kMaxOffEpochs: where fetching ahead
// does not pay, few turns are spent on finding that out again. Where the drive has no idle time
// nothing is fetched in the on epochs either.
#pragma once

#include <array>
#include <cstdint>

namespace stoker {

class PrefetchSwitch {
 public:
  static constexpr double kMinGain = 0.02;    // share of a turn's time that must be saved
  static constexpr double kKeepGain = 0.005;  // once it is on
  static constexpr int kFirstOnEpochs = 16;
  static constexpr int kOnEpochs = 64;
  static constexpr int kOffEpochs = 64;
  static constexpr int kMaxOffEpochs = 1024;
  static constexpr int kMaxRounds = 4;

  explicit PrefetchSwitch(int turns_per_epoch) : turns_per_epoch_(turns_per_epoch) {}

  bool on() const;
  // A turn of decode, from its demand to its release.
  void observe(std::int64_t us);

  // Share of a turn's time that fetching ahead saved in the last trial; negative: it cost.
  double gain() const { return gain_; }
  int num_trials() const { return num_trials_; }

 private:
  enum class State : std::uint8_t { kTrial, kOn, kOff };
  static constexpr int kRoundEpochs = 4;
  // Times of turns, on one side of a trial.
  struct Side {
    double count = 0.0, sum = 0.0, sum_of_squares = 0.0;

    void add(double us) {
      count += 1.0;
      sum += us;
      sum_of_squares += us * us;
    }
    double mean() const { return sum / count; }
    // Square of the mean's standard error.
    double error() const { return (sum_of_squares / count - mean() * mean()) / count; }
  };

  void end_epoch();
  void end_round();
  void enter(State state, int num_epochs);

  int turns_per_epoch_;
  State state_ = State::kOn;
  bool was_on_ = false;  // before the trial, by an earlier one's verdict
  int epochs_left_ = kFirstOnEpochs;
  int turn_ = 0;  // of the epoch
  int num_rounds_ = 0;
  int off_epochs_ = kOffEpochs;
  std::array<Side, 2> sides_;  // off, on
  double gain_ = 0.0;
  int num_trials_ = 0;
};

}  // namespace stoker
