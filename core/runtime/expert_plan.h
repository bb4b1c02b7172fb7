// Turns the router's choices of a step into uses per expert: who is needed, by which rows, and
// where each output goes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/interface/backend.h"
#include "core/interface/expert_provider.h"

namespace stoker {

class ExpertPlan {
 public:
  // Holds up to `max_rows` rows; build() allocates nothing.
  ExpertPlan(int max_rows, int top_k, int num_experts);

  // `routes`: [T, top_k] ids and weights. The spans of uses() point into this object until the next
  // build().
  void build(const RouteMailbox& routes, std::span<const RowRange> ranges, int num_rows);

  std::span<const ExpertUse> uses() const { return uses_; }  // ascending expert id
  int num_slots() const { return num_rows_ * top_k_; }
  // Slot and weight of each row's choices in ascending expert id, [T, top_k].
  std::span<const std::int32_t> slots() const {
    return {slots_.data(), static_cast<std::size_t>(num_slots())};
  }
  std::span<const float> slot_weights() const {
    return {slot_weights_.data(), static_cast<std::size_t>(num_slots())};
  }

 private:
  void place_rows(const RouteMailbox& routes, std::span<const RowRange> ranges, Purpose purpose);

  int top_k_;
  int num_experts_;
  int num_rows_ = 0;
  std::vector<ExpertUse> uses_;
  std::vector<std::int32_t> count_, decode_count_, next_;  // per expert
  std::vector<std::int32_t> rows_;                         // [T * top_k] grouped by expert
  std::vector<float> row_weights_;                         // beside rows_
  std::vector<std::int32_t> slots_, filled_;
  std::vector<float> slot_weights_;
};

}  // namespace stoker
