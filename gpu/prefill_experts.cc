#include "gpu/prefill_experts.h"

#include <algorithm>

#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kTableAlign = 256;

// Gate and up side by side, or two tiles of down.
std::int64_t pairs_of(const QuantView& weight, bool gate_up) {
  const std::int64_t tiles = quant::tile16_of(weight).num_tiles();
  return gate_up ? tiles : (tiles + 1) / 2;
}

template <typename T>
std::int64_t table_bytes(std::int64_t count) {
  const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
  return (bytes + kTableAlign - 1) / kTableAlign * kTableAlign;
}
template <typename T>
std::int64_t table_bytes(const std::vector<T>& table) {
  return table_bytes<T>(static_cast<std::int64_t>(table.size()));
}

}  // namespace

std::int64_t PrefillExperts::items_of(const QuantView& weight, bool gate_up) {
  return (pairs_of(weight, gate_up) + kExpertManyPairs - 1) / kExpertManyPairs;
}

std::int64_t PrefillExperts::bytes_needed(std::int64_t num_tasks, std::int64_t num_items,
                                          std::int64_t num_slots) {
  return table_bytes<ExpertManyTask>(num_tasks) + table_bytes<ExpertManyItem>(num_items) +
         table_bytes<std::int32_t>(num_slots);
}

void PrefillExperts::clear() {
  tasks_.clear();
  items_.clear();
}

void PrefillExperts::add(const QuantView& weight, const QuantView& up, int row_begin,
                         const ExpertUse& use) {
  if (tasks_.empty()) spec_ = weight.spec;
  check_expert_mma(weight, up, spec_, weight.cols);
  const auto task = static_cast<std::int32_t>(tasks_.size());
  tasks_.push_back({weight.payload, weight.scales, up.payload, up.scales,
                    static_cast<std::int32_t>(weight.rows), row_begin});
  const auto pairs = static_cast<int>(pairs_of(weight, !up.empty()));
  const int end = static_cast<int>(use.rows.size());
  // Items that read the same weights stand side by side.
  for (int pair = 0; pair < pairs; pair += kExpertManyPairs) {
    for (int row = use.num_decode_rows; row < end; row += kExpertManyRows) {
      items_.push_back({task, pair, use.slot_begin + row, std::min(kExpertManyRows, end - row)});
    }
  }
}

Status PrefillExperts::launch(ExpertHalf half, const TensorView& x, const TensorView& out,
                              std::span<const ExpertUse> uses, StagingRing& staging,
                              const Stream& stream) {
  const bool gate_up = half == ExpertHalf::kGateUp;
  slot_rows_.clear();
  if (gate_up) {
    slot_rows_.resize(static_cast<std::size_t>(out.rows));
    for (const ExpertUse& use : uses) {
      CHECK(use.slot_begin + static_cast<std::int64_t>(use.rows.size()) <= out.rows,
            "slots {} and {} more of {}", use.slot_begin, use.rows.size(), out.rows);
      std::copy(use.rows.begin(), use.rows.end(), slot_rows_.begin() + use.slot_begin);
    }
  }
  const std::int64_t items_at = table_bytes(tasks_);
  const std::int64_t rows_at = items_at + table_bytes(items_);
  RETURN_IF_ERROR(tables_.grow(rows_at + table_bytes(slot_rows_)), "tables of experts");
  const auto put = [&](std::int64_t at, const auto& table) {
    return staging.copy(tables_.data() + at, table.data(),
                        static_cast<std::int64_t>(table.size() * sizeof(table[0])), stream);
  };
  RETURN_IF_ERROR(put(0, tasks_));
  RETURN_IF_ERROR(put(items_at, items_));
  RETURN_IF_ERROR(put(rows_at, slot_rows_));
  ExpertManyParams params;
  params.spec = spec_;
  params.tasks = reinterpret_cast<const ExpertManyTask*>(tables_.data());
  params.items = reinterpret_cast<const ExpertManyItem*>(tables_.data() + items_at);
  params.num_items = static_cast<int>(items_.size());
  params.slot_rows =
      gate_up ? reinterpret_cast<const std::int32_t*>(tables_.data() + rows_at) : nullptr;
  params.x = x;
  params.out = out;
  return gate_up ? launch_expert_gate_up_many(params, stream)
                 : launch_expert_down_many(params, stream);
}

}  // namespace stoker::gpu
