#include "core/tensor/quant_view.h"

namespace stoker {

std::string quant_spec_name(const QuantSpec& spec) {
  return std::string(quant_format_name(spec.format));
}

std::optional<QuantSpec> parse_quant_spec(std::string_view name) {
  for (const QuantFormat format :
       {QuantFormat::kF32, QuantFormat::kF16, QuantFormat::kBf16, QuantFormat::kF8E4m3B128}) {
    if (quant_format_name(format) == name) return QuantSpec{format};
  }
  return std::nullopt;
}

}  // namespace stoker
