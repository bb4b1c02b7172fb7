#include "core/runtime/expert_costs.h"

#include <algorithm>
#include <cmath>

#include "core/base/check.h"

namespace stoker {
namespace {

// Costs are corrected by factors, so all means are means of logarithms: a measurement at twice the
// expected time and one at half of it cancel, and a cost stays positive.

// Weight of one observation in the moving average, as TCP gives a round trip (RFC 6298). A layer is
// observed in every token: what was true 8 layers ago has lost two thirds of its weight.
constexpr double kWeight = 1.0 / 8;
// An observation counts as at most this far from what was expected (the bounded influence of
// Huber's estimators, 1964): a stall of any length moves a cost by 2^(1/8), 9 %. A start that is
// wrong ten times over is corrected by 27 observations.
constexpr double kMaxRatio = 2.0;
// What is taken for the expert itself, not for its rows, where nothing was known: reading the
// weights dominates in decode.
constexpr double kFirstExpertShare = 7.0 / 8;
// Correlation of the errors of an expert's and a row's cost: clock, memory and other load act on
// both, while a calibration of too few shapes may have told them apart wrongly.
constexpr double kTogether = 0.75;

bool is_time(double us) { return us > 0.0 && std::isfinite(us); }

// Logarithm of the factor by which an average over observations such as this one moves.
double step(double observed, double expected) {
  return kWeight * std::log(std::clamp(observed / expected, 1 / kMaxRatio, kMaxRatio));
}

// Corrects both parts so that their sum moves by one step. An observation does not say which part
// is to blame: the step is divided as a Kalman filter would (1960) over the logarithms of parts
// that are known equally badly and mostly wrong together (kTogether). So decode alone, always one
// row an expert, nearly keeps the relation that was given, and other numbers of rows tell the parts
// apart.
void correct(ComputeCost& cost, int num_experts, int num_rows, double us) {
  if (num_experts <= 0 || num_rows < 0 || !is_time(us)) return;
  const double experts_us = num_experts * cost.expert_us, rows_us = num_rows * cost.row_us;
  const double expected = experts_us + rows_us;
  if (!(expected > 0.0)) {
    cost.expert_us = us * kFirstExpertShare / num_experts;
    if (num_rows > 0) cost.row_us = us * (1 - kFirstExpertShare) / num_rows;
    return;
  }
  const double e = experts_us / expected, r = rows_us / expected;
  const double e_blame = e + kTogether * r, r_blame = r + kTogether * e;
  const double scale = step(us, expected) / (e * e_blame + r * r_blame);
  cost.expert_us *= std::exp(scale * e_blame);
  cost.row_us *= std::exp(scale * r_blame);
}

}  // namespace

ExpertCosts::ExpertCosts(const ComputeCost& host, std::span<const DeviceCosts> devices)
    : host_(host), devices_(devices.begin(), devices.end()) {
  CHECK(devices.size() <= kMaxScheduledDevices, "{} devices", devices.size());
}

void ExpertCosts::observe_host(int num_experts, int num_rows, double us) {
  correct(host_, num_experts, num_rows, us);
}

void ExpertCosts::observe_device(int device, int num_experts, int num_rows, double us) {
  correct(devices_[checked(device)].compute, num_experts, num_rows, us);
}

void ExpertCosts::observe_upload(int device, std::int64_t bytes, double us) {
  if (bytes <= 0 || !is_time(us)) return;
  double& cost = devices_[checked(device)].upload_us_per_byte;
  const double observed = us / static_cast<double>(bytes);
  cost = cost > 0.0 ? cost * std::exp(step(observed, cost)) : observed;
}

}  // namespace stoker
