// How much of this machine's memory a model gets, decided before anything is loaded.
#pragma once

#include <cstdint>

#include "core/base/error.h"
#include "tools/shorter_context.h"

namespace stoker::tools {

// What a model that runs takes. Bytes.
struct MemoryNeed {
  std::int64_t dense_bytes = 0, workspace_bytes = 0;
  std::int64_t kv_bytes = 0;  // of the pages for `context_tokens`
  int context_tokens = 0;
  ContextFlag context_flag;
  std::int64_t slot_bytes = 0;   // of the largest expert; 0: the model has none
  std::int64_t num_experts = 0;  // over all layers
  int fewest_slots = 0;          // experts of a token in one layer

  std::int64_t fixed_bytes() const { return dense_bytes + kv_bytes + workspace_bytes; }
};

// Slots for experts in RAM: as many as `ram_bytes` (--ram) holds, or without it (0) as many as
// leave a sixteenth of `available_bytes` to others; never more than there are experts.
// `available_bytes` 0: not known. Refused, with the numbers: fewer slots than `fewest_slots`, and
// more than is available.
Result<int> plan_slots(const MemoryNeed& need, std::int64_t ram_bytes,
                       std::int64_t available_bytes);

}  // namespace stoker::tools
