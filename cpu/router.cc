#include "cpu/router.h"

#include <algorithm>
#include <array>
#include <limits>

#include "core/base/check.h"
#include "quant/defined_arithmetic.h"

namespace stoker {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

float sigmoid(float x) { return 1.0f / (1.0f + quant::exp_defined(-x)); }

// Sum of the two largest choice scores, or the only one.
float group_score(std::span<const float> choice) {
  float first = kNever, second = kNever;
  for (const float z : choice) {
    if (z > first) {
      second = first;
      first = z;
    } else if (z > second) {
      second = z;
    }
  }
  return choice.size() > 1 ? first + second : first;
}

// Index of the largest entry not yet taken; the lowest of equals. Returns an index even where no
// entry compares (NaN), so that a broken model cannot lead outside the table.
int take_best(std::span<const float> values, std::span<bool> taken) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(values.size()); ++i) {
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
  }
  taken[best] = true;
  return best;
}

// Fills `experts` from the choice scores z, which it changes.
void choose(const RouterSpec& spec, std::span<float> z, std::span<std::int32_t> experts) {
  const std::size_t group_size = z.size() / spec.num_groups;
  std::array<bool, kMaxRoutedExperts> kept{};
  if (spec.top_groups < spec.num_groups) {
    std::array<float, kMaxRoutedExperts> scores;
    for (int g = 0; g < spec.num_groups; ++g) {
      scores[g] = group_score(z.subspan(g * group_size, group_size));
    }
    const std::span<const float> group_scores(scores.data(), spec.num_groups);
    for (int i = 0; i < spec.top_groups; ++i) {
      take_best(group_scores, {kept.data(), group_scores.size()});
    }
  } else {
    std::fill_n(kept.begin(), spec.num_groups, true);
  }
  // Experts of dropped groups are out of the race altogether: a mask of 0 would let one win against
  // negative scores.
  std::array<bool, kMaxRoutedExperts> taken{};
  for (std::size_t e = 0; e < z.size(); ++e) taken[e] = !kept[e / group_size];
  for (std::int32_t& expert : experts) expert = take_best(z, {taken.data(), z.size()});
}

}  // namespace

void route_row(const RouterSpec& spec, std::span<const float> logits, std::span<const float> bias,
               std::span<const std::int32_t> forced, std::span<std::int32_t> experts,
               std::span<float> weights) {
  const int num_experts = spec.num_experts;
  CHECK(num_experts > 0 && num_experts <= kMaxRoutedExperts, "{} experts", num_experts);
  CHECK(spec.num_groups > 0 && num_experts % spec.num_groups == 0, "{} experts in {} groups",
        num_experts, spec.num_groups);
  CHECK(spec.top_groups > 0 && spec.top_groups * (num_experts / spec.num_groups) >= spec.top_k,
        "top {} of {} groups hold fewer than {} experts", spec.top_groups, spec.num_groups,
        spec.top_k);
  CHECK(logits.size() == static_cast<std::size_t>(num_experts) && bias.size() == logits.size(),
        "{} logits, {} biases", logits.size(), bias.size());
  CHECK(experts.size() == static_cast<std::size_t>(spec.top_k) && weights.size() == experts.size(),
        "room for {} experts, {} weights", experts.size(), weights.size());

  // 1. Scores.
  std::array<float, kMaxRoutedExperts> gate, choice;
  for (int e = 0; e < num_experts; ++e) {
    gate[e] = sigmoid(logits[e]);
    choice[e] = gate[e] + bias[e];
  }

  // 2. Choice.
  if (forced.empty()) {
    choose(spec, {choice.data(), logits.size()}, experts);
  } else {
    CHECK(forced.size() == experts.size(), "{} forced experts", forced.size());
    std::copy(forced.begin(), forced.end(), experts.begin());
  }

  // 3. Weights: of the gate alone, summed in order of choice.
  float sum = 0.0f;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    CHECK(experts[i] >= 0 && experts[i] < num_experts, "expert {}", experts[i]);
    weights[i] = gate[experts[i]];
    sum += weights[i];
  }
  for (float& weight : weights) {
    if (spec.normalise) weight /= sum;
    weight *= spec.scaling;
  }
}

}  // namespace stoker
