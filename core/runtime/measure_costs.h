// What computing and copying experts takes on this machine, found by doing it: what ExpertCosts
// begins with.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/interface/expert_source.h"
#include "core/model/model_config.h"
#include "core/runtime/expert_costs.h"

namespace stoker {

// Who is measured.
struct CostSubjects {
  struct Device {
    Backend* backend = nullptr;
    std::int64_t most_bytes = 0;  // that may be taken of it meanwhile, but for one expert; 0: any
  };
  Backend* host = nullptr;          // null: no backend of the host computes experts
  std::span<const Device> devices;  // as ExpertCosts counts them
};

// Reads a few experts of the first layer that has any and computes them again and again, as decode
// does, with one row and with several; some tenths of a second. Memory that it takes is given back.
// Errors: of `source` and of the backends. Blocks.
Result<ExpertCosts> measure_costs(const ModelConfig& config, const ExpertSource& source,
                                  const CostSubjects& subjects, const Clock& clock);

}  // namespace stoker
