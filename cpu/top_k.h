// The k largest of n scores in linear time.
#pragma once

#include <cstdint>
#include <span>

namespace stoker::cpu {

inline constexpr int kTopKBuckets = 2048;

// Writes the positions of the k = out.size() largest of `scores`, ascending; of equal scores the
// lower position wins. Requires: k <= scores.size(). `histogram` is scratch of kTopKBuckets.
void select_top_k(std::span<const float> scores, std::span<std::int32_t> out,
                  std::span<std::int32_t> histogram);

}  // namespace stoker::cpu
