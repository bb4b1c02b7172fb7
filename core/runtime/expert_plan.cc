#include "core/runtime/expert_plan.h"

#include <algorithm>

#include "core/base/check.h"

namespace stoker {

ExpertPlan::ExpertPlan(int max_rows, int top_k, int num_experts)
    : top_k_(top_k), num_experts_(num_experts) {
  const std::size_t slots = static_cast<std::size_t>(max_rows) * top_k;
  uses_.reserve(std::min<std::size_t>(slots, num_experts));
  count_.resize(num_experts);
  decode_count_.resize(num_experts);
  next_.resize(num_experts);
  rows_.resize(slots);
  row_weights_.resize(slots);
  slots_.resize(slots);
  slot_weights_.resize(slots);
  filled_.resize(max_rows);
}

void ExpertPlan::place_rows(const RouteMailbox& routes, std::span<const RowRange> ranges,
                            Purpose purpose) {
  for (const RowRange& range : ranges) {
    if (range.purpose != purpose) continue;
    for (int row = range.row_begin; row < range.row_begin + range.num_rows; ++row) {
      for (int i = row * top_k_; i < (row + 1) * top_k_; ++i) {
        const int at = next_[routes.experts[i]]++;
        rows_[at] = row;
        row_weights_[at] = routes.weights[i];
      }
    }
  }
}

void ExpertPlan::build(const RouteMailbox& routes, std::span<const RowRange> ranges, int num_rows) {
  num_rows_ = num_rows;
  CHECK(static_cast<std::size_t>(num_slots()) <= slots_.size(), "{} rows", num_rows);
  // 1. How often each expert is chosen.
  std::fill(count_.begin(), count_.end(), 0);
  std::fill(decode_count_.begin(), decode_count_.end(), 0);
  for (const RowRange& range : ranges) {
    for (int i = range.row_begin * top_k_; i < (range.row_begin + range.num_rows) * top_k_; ++i) {
      const int expert = routes.experts[i];
      CHECK(expert >= 0 && expert < num_experts_, "expert {} of {}", expert, num_experts_);
      ++count_[expert];
      if (range.purpose == Purpose::kDecode) ++decode_count_[expert];
    }
  }
  // 2. Slots of one expert are consecutive, experts ascending.
  uses_.clear();
  int begin = 0;
  for (int expert = 0; expert < num_experts_; ++expert) {
    next_[expert] = begin;
    if (count_[expert] == 0) continue;
    ExpertUse use;
    use.expert = expert;
    use.rows = {rows_.data() + begin, static_cast<std::size_t>(count_[expert])};
    use.weights = {row_weights_.data() + begin, static_cast<std::size_t>(count_[expert])};
    use.num_decode_rows = decode_count_[expert];
    use.slot_begin = begin;
    uses_.push_back(use);
    begin += count_[expert];
  }
  // 3. Rows of an expert: decode rows first.
  place_rows(routes, ranges, Purpose::kDecode);
  place_rows(routes, ranges, Purpose::kPrefill);
  // 4. Each row's slots in ascending expert id: the order in which outputs are summed.
  std::fill(filled_.begin(), filled_.begin() + num_rows, 0);
  for (int slot = 0; slot < begin; ++slot) {
    const int row = rows_[slot];
    const int at = row * top_k_ + filled_[row]++;
    slots_[at] = slot;
    slot_weights_[at] = row_weights_[slot];
  }
}

}  // namespace stoker
