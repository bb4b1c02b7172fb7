// Ids are types, so that a token is never taken for an expert.
#pragma once

#include <compare>
#include <cstdint>

namespace stoker {

using TokenId =
    std::int32_t;  // an index into the vocabulary, as tokenizer and model files write it

// One routed expert of one layer.
struct ExpertId {
  int layer = 0;   // index into the layer table
  int expert = 0;  // 0 .. n_routed_experts-1
  auto operator<=>(const ExpertId&) const = default;
};

}  // namespace stoker
