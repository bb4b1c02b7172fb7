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
  Backend* host = nullptr;             // null: no backend of the host computes experts
  std::span<Backend* const> devices;   // as ExpertCosts counts them
  std::int64_t most_device_bytes = 0;  // that may be taken of each device meanwhile; 0: no limit
};

// Reads a few experts of the first layer that has any and computes them again and again, as decode
// does, with one row and with several; some tenths of a second. Memory that it takes is given back.
// Errors: of `source` and of the backends. Blocks.
Result<ExpertCosts> measure_costs(const ModelConfig& config, const ExpertSource& source,
                                  const CostSubjects& subjects, const Clock& clock);

}  // namespace stoker
