// From floating point to INT8 and INT4: round to nearest, with a scale per row and group that
// minimises the squared error of its group.
//
// The scales considered for a group are BF16 values: with s the least one for which the largest
// magnitude needs no clipping (magnitude <= max_code * s), all from s downwards until clipping that
// one magnitude alone costs more than the best whole group so far, and the 16 next above s. Larger
// ones are not tried: on groups of 32 and more normal weights they would lower the squared error by
// 0.2 % at most (docs/measurements.md). Errors are compared in F32, to a relative 1e-4.
//
// What holds on every machine and compiler: the same values give the same scales and codes. A code
// is the integer nearest to value / scale, ties to even, clipped to [-max_code, max_code]. A group
// of zeros has scale 0 and codes 0. Subnormal values and scales are kept; magnitudes beyond the
// range of F32 saturate. Values must not be NaN.
#pragma once

#include <cstdint>

#include "core/tensor/quant_view.h"

namespace stoker::quant {

inline constexpr int kMaxQuantGroup = 128;

// Quantises one group of `count` <= kMaxQuantGroup values; returns its scale, `codes` takes
// [count].
bf16 quantize_group(const float* values, int count, int max_code, std::int8_t* codes);

// Quantises rows [row_begin, row_begin + num_rows) of a row-major matrix of any floating-point
// format into tile16 form: `payload` takes Tile16{num_rows, cols, spec}.payload_bytes(), `scales`
// its scale_bytes(). Requires: spec.is_integer(), its group a multiple of 8 and at most
// kMaxQuantGroup.
void quantize_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                     const QuantSpec& spec, std::byte* payload, std::byte* scales);

// Row `row` of a row-major matrix of any floating-point format, scales applied: `dst` takes
// [src.cols].
void dequantize_row(const QuantView& src, std::int64_t row, float* dst);

}  // namespace stoker::quant
