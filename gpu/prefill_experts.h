// The tables of expert_many.cu: which blocks of weights are multiplied with which rows, collected
// part by part on the host and copied to the device for one launch.
#pragma once

#include <span>
#include <vector>

#include "core/interface/backend.h"
#include "gpu/device.h"
#include "gpu/launch.h"

namespace stoker::gpu {

class PrefillExperts {
 public:
  // `weight` (gate, beside `up`, or down: on the device) for the prefill rows of `use`, whose
  // outputs begin at column `row_begin`. All of a launch have one spec.
  void add(const QuantView& weight, const QuantView& up, int row_begin, const ExpertUse& use);

  // Items of a block of weights (gate beside up, or down) for up to kExpertManyRows rows.
  static std::int64_t items_of(const QuantView& weight, bool gate_up);
  // Of the tables for so many.
  static std::int64_t bytes_needed(std::int64_t num_tasks, std::int64_t num_items,
                                   std::int64_t num_slots);
  Status reserve(std::int64_t bytes) { return tables_.grow(bytes); }
  std::int64_t bytes() const { return tables_.bytes(); }

  bool empty() const { return items_.empty(); }
  void clear();

  // Multiplies what was added. `uses` are those whose parts were.
  Status launch(ExpertHalf half, const TensorView& x, const TensorView& out,
                std::span<const ExpertUse> uses, StagingRing& staging, const Stream& stream);

 private:
  QuantSpec spec_;
  std::vector<ExpertManyTask> tasks_;
  std::vector<ExpertManyItem> items_;
  std::vector<std::int32_t> slot_rows_;  // by slot, the row of the step; reused
  DeviceBuffer tables_;                  // those three, in stream order
};

}  // namespace stoker::gpu
