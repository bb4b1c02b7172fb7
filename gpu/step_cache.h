// The device copies of step descriptions. Several forward passes may be alive, each with its own
// StepView at a fixed address; the address names the step from begin_step() until another step
// begins there. What operations of layers read of it stands at the same place for the same address
// and number of rows, unless its memory has grown: then `tokens` is another address.
#pragma once

#include <vector>

#include "gpu/device.h"
#include "gpu/launch.h"

namespace stoker::gpu {

// Device bytes of the tables of a step; `num_pages` over all its sequences and both streams.
std::int64_t step_table_bytes(std::int64_t num_rows, std::int64_t num_logit_rows,
                              std::int64_t num_pages);

// Of those that reserve() is for: two passes of a runner, and what measured costs before them.
inline constexpr int kReservedSteps = 3;

class StepCache {
 public:
  // Makes room for kReservedSteps steps, `bytes` for all of them.
  Status reserve(std::int64_t bytes);
  std::int64_t bytes() const;

  // Copies what the kernels need of `step`. Allocates only when a step is larger than those before.
  Status begin(const StepView& step, StagingRing& staging, const Stream& stream);

  // Requires: begin() was called for a step at this address.
  const StepTables& tables(const StepView& step) const;

 private:
  struct Entry {
    const StepView* step = nullptr;  // null: reserved
    std::uint64_t last_begin = 0;
    DeviceBuffer memory;
    StepTables tables;
  };
  Entry& entry_for(const StepView& step);

  std::vector<Entry> entries_;
  std::vector<std::int32_t> packed_;  // reused
  std::uint64_t num_begins_ = 0;
};

}  // namespace stoker::gpu
