// The router of a MoE layer (spec 3.7), in scalar F32: one definition for every host backend.
#pragma once

#include <cstdint>
#include <span>

#include "core/model/layer_spec.h"

namespace stoker {

inline constexpr int kMaxRoutedExperts = 1024;  // per layer; bounds the scratch on the stack

// Chooses experts for one row. `logits` and `bias` are [num_experts]; `experts` and `weights` take
// top_k entries in order of choice score, best first (ties: the lower id). A non-empty `forced`
// [top_k] names the experts to take, in that order, instead of choosing; their weights are computed
// from the logits as usual. Allocates nothing.
void route_row(const RouterSpec& spec, std::span<const float> logits, std::span<const float> bias,
               std::span<const std::int32_t> forced, std::span<std::int32_t> experts,
               std::span<float> weights);

}  // namespace stoker
