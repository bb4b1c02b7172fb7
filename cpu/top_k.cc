#include "cpu/top_k.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/tensor/order_key.h"

namespace stoker::cpu {

// Finds the k-th largest key 11, 11 and 10 bits at a time, then takes what lies above it and as
// many of its equals as are missing, in one ascending pass.
void select_top_k(std::span<const float> scores, std::span<std::int32_t> out,
                  std::span<std::int32_t> histogram) {
  CHECK(out.size() <= scores.size() && histogram.size() == kTopKBuckets, "top {} of {}", out.size(),
        scores.size());
  if (out.empty()) return;
  std::uint32_t prefix = 0, mask = 0;
  auto missing = static_cast<std::int32_t>(out.size());
  constexpr struct {
    int shift, bits;
  } kDigits[] = {{21, 11}, {10, 11}, {0, 10}};
  for (const auto& [shift, bits] : kDigits) {
    std::fill(histogram.begin(), histogram.end(), 0);
    const std::uint32_t digit_mask = (1u << bits) - 1;
    for (const float score : scores) {
      const std::uint32_t key = order_key(score);
      if ((key & mask) == prefix) ++histogram[key >> shift & digit_mask];
    }
    std::uint32_t digit = digit_mask;
    while (histogram[digit] < missing) missing -= histogram[digit--];
    prefix |= digit << shift;
    mask |= digit_mask << shift;
  }
  std::size_t count = 0;
  for (std::size_t i = 0; i < scores.size() && count < out.size(); ++i) {
    const std::uint32_t key = order_key(scores[i]);
    if (key < prefix) continue;
    if (key == prefix && missing-- <= 0) continue;
    out[count++] = static_cast<std::int32_t>(i);
  }
}

}  // namespace stoker::cpu
