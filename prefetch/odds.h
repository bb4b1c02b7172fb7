// Odds: how often something turned out true, learned as it goes and forgetting slowly.
#pragma once

namespace stoker {

class Odds {
 public:
  // Begins as if `weight` trials had come out `prior` of the time.
  explicit Odds(double prior = 0.5, double weight = 8.0) : hits_(prior * weight), trials_(weight) {}

  void observe(bool hit) { observe(hit ? 1.0 : 0.0, 1.0); }
  void observe(double hits, double trials) {
    hits_ += hits;
    trials_ += trials;
    if (trials_ < kMemory) return;
    hits_ *= 0.5;
    trials_ *= 0.5;
  }
  double value() const { return hits_ / trials_; }

 private:
  static constexpr double kMemory = 2048.0;  // trials, the older half counting half

  double hits_, trials_;
};

}  // namespace stoker
