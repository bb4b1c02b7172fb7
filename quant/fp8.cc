#include "quant/fp8.h"

namespace stoker::quant {

std::uint8_t f32_to_fp8(float value) {
  const std::uint32_t bits = f32_to_bits(value);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7f | sign;
  if (magnitude >= 464.0f)
    return 0x7e | sign;  // halfway between 448 and the unused 480 and above: saturate
  if (magnitude < 0x1p-6f) {
    // Subnormal: multiples of 2^-9. The addition rounds to nearest even at that place.
    const auto steps = static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p9f));
    return static_cast<std::uint8_t>(sign | steps);
  }
  const std::uint32_t magnitude_bits = f32_to_bits(magnitude);
  const std::uint32_t rounded = magnitude_bits + 0x7ffffu + ((magnitude_bits >> 20) & 1u);
  const std::uint32_t code = (rounded >> 20) - ((127u - 7u) << 3);
  return static_cast<std::uint8_t>(sign | (code > 0x7eu ? 0x7eu : code));
}

bool fp8_has_nan(const std::uint8_t* codes, std::int64_t count) {
  bool found = false;
  for (std::int64_t i = 0; i < count; ++i) found |= (codes[i] & 0x7fu) == 0x7fu;
  return found;
}

}  // namespace stoker::quant
