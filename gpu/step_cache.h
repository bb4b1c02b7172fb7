// The device copies of step descriptions. Several forward passes may be alive, each with its own
// StepView at a fixed address; the address names the step from begin_step() until another step
// begins there.
#pragma once

#include <vector>

#include "gpu/device.h"
#include "gpu/launch.h"

namespace stoker::gpu {

class StepCache {
 public:
  // Copies what the kernels need of `step`. Allocates only when a step is larger than those before.
  Status begin(const StepView& step, StagingRing& staging, const Stream& stream);

  // Requires: begin() was called for a step at this address.
  const StepTables& tables(const StepView& step) const;

 private:
  struct Entry {
    const StepView* step = nullptr;
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
