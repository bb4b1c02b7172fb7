#include "quant/fp8.h"

namespace stoker::quant {

bool fp8_has_nan(const std::uint8_t* codes, std::int64_t count) {
  bool found = false;
  for (std::int64_t i = 0; i < count; ++i) found |= (codes[i] & 0x7fu) == 0x7fu;
  return found;
}

}  // namespace stoker::quant
