// A dense numbering of the experts a model can have, so that what is known of each stands in a
// plain array.
#pragma once

#include <cstdint>

#include "core/base/check.h"
#include "core/base/ids.h"

namespace stoker {

// A place for one expert, as SlotArena counts them.
using SlotIdx = std::int32_t;

struct ExpertGrid {
  int num_layers = 0;   // of the layer table, dense layers included
  int num_experts = 0;  // of the layer that has most

  int size() const { return num_layers * num_experts; }
  int index(ExpertId id) const {
    CHECK(id.layer >= 0 && id.layer < num_layers && id.expert >= 0 && id.expert < num_experts,
          "expert {} of layer {} in a grid of {} layers with {} experts", id.expert, id.layer,
          num_layers, num_experts);
    return id.layer * num_experts + id.expert;
  }
  ExpertId id(int index) const { return {index / num_experts, index % num_experts}; }
};

}  // namespace stoker
