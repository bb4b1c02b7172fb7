// A linear's weights as they are stored: payload, scales, and the spec that says how to read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/tensor/tensor.h"

namespace stoker {

enum class QuantFormat : std::uint8_t { kF32, kF16, kBf16, kF8E4m3B128 };

// How one matrix [rows = outputs, cols = inputs] is quantised.
struct QuantSpec {
  QuantFormat format = QuantFormat::kF32;
  // Inputs that share a scale, and the stretch of inputs whose partial sums are closed together in
  // the defined arithmetic (quant/defined_arithmetic.h) whether or not the format has scales. The
  // last group may be partial.
  int group = 128;

  bool operator==(const QuantSpec&) const = default;
  constexpr int element_bits() const {
    switch (format) {
      case QuantFormat::kF32:
        return 32;
      case QuantFormat::kF16:
      case QuantFormat::kBf16:
        return 16;
      case QuantFormat::kF8E4m3B128:
        return 8;
    }
    return 0;
  }
  constexpr bool has_scales() const { return format == QuantFormat::kF8E4m3B128; }
};

constexpr std::string_view quant_format_name(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32:
      return "f32";
    case QuantFormat::kF16:
      return "f16";
    case QuantFormat::kBf16:
      return "bf16";
    case QuantFormat::kF8E4m3B128:
      return "fp8_e4m3_b128";
  }
  return "?";
}

// "f32", "fp8_e4m3_b128", ...
std::string quant_spec_name(const QuantSpec& spec);
// The spec of such a name; empty for names that quant_spec_name() does not give.
std::optional<QuantSpec> parse_quant_spec(std::string_view name);

enum class WeightLayout : std::uint8_t {
  kRowMajor,  // as published: rows one after another; scales [ceil(rows/128), ceil(cols/128)] for
              // kF8E4m3B128
  kTile16,    // groups of 16 rows interleaved dword by dword: quant/tile16.h
};

// A weight matrix y = x . W^T. Does not own its memory.
struct QuantView {
  const std::byte* payload = nullptr;
  const float* scales = nullptr;  // null for formats without scales
  std::int64_t rows = 0;          // outputs
  std::int64_t cols = 0;          // inputs
  QuantSpec spec;
  WeightLayout layout = WeightLayout::kRowMajor;
  DeviceId device = kHost;

  bool empty() const { return payload == nullptr; }
  // Bytes of payload and scales in row-major form: what is stored.
  std::int64_t stored_bytes() const {
    const std::int64_t scale_bytes =
        spec.has_scales() ? ((rows + 127) / 128) * ((cols + 127) / 128) * 4 : 0;
    return rows * cols * spec.element_bits() / 8 + scale_bytes;
  }
};

}  // namespace stoker
