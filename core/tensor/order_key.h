// Values as integers that order alike, for selections that count or compare bits.
#pragma once

#include <cstdint>

#include "core/base/hd.h"
#include "core/tensor/dtype.h"

namespace stoker {

// Larger values have larger keys; -0 and +0 have the same. NaN is somewhere.
STOKER_HD inline std::uint32_t order_key(float value) {
  const std::uint32_t bits = f32_to_bits(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace stoker
