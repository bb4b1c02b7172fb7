// A linear's weights as they are stored: payload, scales, and the spec that says how to read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/tensor/tensor.h"

namespace stoker {

// kInt8 and kInt4 are symmetric: codes -127..127 and -7..7 in two's complement, times a scale per
// output row and group of inputs.
enum class QuantFormat : std::uint8_t { kF32, kF16, kBf16, kF8E4m3B128, kInt8, kInt4 };

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
      case QuantFormat::kInt8:
        return 8;
      case QuantFormat::kInt4:
        return 4;
    }
    return 0;
  }
  constexpr bool has_scales() const { return scale_bytes() != 0; }
  // One scale: F32 for FP8, BF16 for the integers.
  constexpr int scale_bytes() const {
    return format == QuantFormat::kF8E4m3B128 ? 4 : is_integer() ? 2 : 0;
  }
  constexpr bool is_integer() const {
    return format == QuantFormat::kInt8 || format == QuantFormat::kInt4;
  }
  // Largest magnitude of an integer code.
  constexpr int max_code() const { return format == QuantFormat::kInt4 ? 7 : 127; }
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
    case QuantFormat::kInt8:
      return "int8";
    case QuantFormat::kInt4:
      return "int4";
  }
  return "?";
}

// "f32", "fp8_e4m3_b128", "int8_g128", "int4_g64", ...: the group is named where it may differ.
std::string quant_spec_name(const QuantSpec& spec);
// The spec of such a name; empty for names that quant_spec_name() does not give. Groups are 128 for
// INT8, and 32, 64 or 128 for INT4.
std::optional<QuantSpec> parse_quant_spec(std::string_view name);

enum class WeightLayout : std::uint8_t {
  kRowMajor,  // as published: rows one after another; scales [ceil(rows/128), ceil(cols/128)] for
              // kF8E4m3B128; not for integers
  kTile16,    // groups of 16 rows interleaved dword by dword: quant/tile16.h
};

// A weight matrix y = x . W^T. Does not own its memory.
struct QuantView {
  const std::byte* payload = nullptr;
  const std::byte* scales = nullptr;  // as the layout says; null for formats without scales
  std::int64_t rows = 0;              // outputs
  std::int64_t cols = 0;              // inputs
  QuantSpec spec;
  WeightLayout layout = WeightLayout::kRowMajor;
  DeviceId device = kHost;

  bool empty() const { return payload == nullptr; }
  // Bytes of payload and scales without the padding of a layout.
  std::int64_t stored_bytes() const;
};

}  // namespace stoker
