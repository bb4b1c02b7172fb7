#include "core/tensor/quant_view.h"

#include <fmt/format.h>

#include <array>

namespace stoker {
namespace {

constexpr std::array kSpecs = {
    QuantSpec{QuantFormat::kF32, 128},  QuantSpec{QuantFormat::kF16, 128},
    QuantSpec{QuantFormat::kBf16, 128}, QuantSpec{QuantFormat::kF8E4m3B128, 128},
    QuantSpec{QuantFormat::kInt8, 128}, QuantSpec{QuantFormat::kInt4, 32},
    QuantSpec{QuantFormat::kInt4, 64},  QuantSpec{QuantFormat::kInt4, 128},
};

std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

}  // namespace

std::string quant_spec_name(const QuantSpec& spec) {
  const std::string_view format = quant_format_name(spec.format);
  return spec.is_integer() ? fmt::format("{}_g{}", format, spec.group) : std::string(format);
}

std::optional<QuantSpec> parse_quant_spec(std::string_view name) {
  for (const QuantSpec& spec : kSpecs) {
    if (quant_spec_name(spec) == name) return spec;
  }
  return std::nullopt;
}

std::int64_t QuantView::stored_bytes() const {
  const std::int64_t payload = rows * ceil_div(cols * spec.element_bits(), 8);
  // FP8 scales belong to blocks of rows, the integers' to single rows.
  const std::int64_t scale_rows = spec.is_integer() ? rows : ceil_div(rows, 128);
  return payload + scale_rows * ceil_div(cols, spec.group) * spec.scale_bytes();
}

}  // namespace stoker
