#include "storage/depth_tuner.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <map>
#include <random>

namespace stoker::storage {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::array kDepths = {8 * kMiB, 16 * kMiB, 32 * kMiB, 64 * kMiB};

// Reads for `seconds` from a drive whose rate (bytes per microsecond) depends on depth and time,
// with 5 % noise. Returns the time spent at each depth in the second half.
std::map<std::int64_t, double> drive(DepthTuner& tuner, double seconds,
                                     const std::function<double(std::int64_t, double)>& rate) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> noise(0.95, 1.05);
  std::map<std::int64_t, double> shares;
  for (double now = 0.0; now < seconds;) {
    const std::int64_t depth = tuner.bytes_in_flight();
    const double us = static_cast<double>(kMiB) / (rate(depth / kMiB, now) * noise(random));
    tuner.add(kMiB, static_cast<std::int64_t>(us));
    now += us * 1e-6;
    if (now > seconds / 2) shares[depth / kMiB] += us * 1e-6 / (seconds / 2);
  }
  return shares;
}

TEST(DepthTuner, FindsTheFastest) {
  for (const std::int64_t fastest : {8, 16, 32, 64}) {
    DepthTuner tuner(kDepths);
    const auto shares = drive(tuner, 20.0, [&](std::int64_t depth, double) {
      return depth == fastest ? 2300.0 : 2000.0;
    });
    EXPECT_GT(shares.at(fastest), 0.85) << fastest;
  }
}

TEST(DepthTuner, TakesTheLeastOfEquals) {
  DepthTuner tuner(kDepths);
  const auto shares =
      drive(tuner, 20.0, [](std::int64_t depth, double) { return depth < 16 ? 5000.0 : 7000.0; });
  EXPECT_GT(shares.at(16), 0.6);
}

// A drive that switches between two speeds every other second is no reason to prefer a slow depth.
TEST(DepthTuner, IsNotMisledByADriveThatChangesItsSpeed) {
  DepthTuner tuner(kDepths);
  const auto shares = drive(tuner, 60.0, [](std::int64_t depth, double now) {
    const double speed = static_cast<int>(now / 1.5) % 2 == 0 ? 2200.0 : 1050.0;
    return depth == 8 ? 0.6 * speed : speed;
  });
  EXPECT_LT(shares.at(8), 0.15);
}

TEST(DepthTuner, ASingleDepthStays) {
  DepthTuner tuner(std::array{5 * kMiB});
  drive(tuner, 1.0, [](std::int64_t, double) { return 1000.0; });
  EXPECT_EQ(tuner.bytes_in_flight(), 5 * kMiB);
}

}  // namespace
}  // namespace stoker::storage
