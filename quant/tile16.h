// The tile16 layout: how weights lie in memory (and later in the packed store) so that a CPU thread
// reads one sequential stream in which each vector lane owns an output row, and a GPU warp reads
// whole lines.
//
// Rows are taken in tiles of 16 (the last tile padded with zero rows), inputs in turns of one dword
// per row:
//
//   tile 0: | turn 0: row0 row1 … row15 | turn 1: row0 … row15 | … | tile 1: …      one dword (4
//   bytes) each
//
// A dword holds 4 FP8, 2 BF16/F16 or 1 F32, lower column in the lower bytes (little endian).
// Columns are padded with zeros to a multiple of 4, so that every format walks the same four
// partial sums (defined_arithmetic.h). Scales of FP8: F32 [num_tiles, num_groups], one for the 16
// rows of a tile and the 128 columns of a group (16 divides 128, so a tile never spans two scale
// rows).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/tensor/quant_view.h"
#include "quant/fp8.h"

namespace stoker::quant {

inline constexpr int kTileRows = 16;

// Sizes and places within one matrix in tile16 layout.
struct Tile16 {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  QuantSpec spec;

  STOKER_HD constexpr std::int64_t num_tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  STOKER_HD constexpr std::int64_t padded_cols() const { return (cols + 3) / 4 * 4; }
  STOKER_HD constexpr int cols_per_turn() const { return 32 / spec.element_bits(); }
  STOKER_HD constexpr std::int64_t num_turns() const { return padded_cols() / cols_per_turn(); }
  STOKER_HD constexpr std::int64_t num_groups() const {
    return (cols + spec.group - 1) / spec.group;
  }
  STOKER_HD constexpr std::int64_t tile_bytes() const { return num_turns() * kTileRows * 4; }
  STOKER_HD constexpr std::int64_t payload_bytes() const { return num_tiles() * tile_bytes(); }
  STOKER_HD constexpr std::int64_t scale_count() const {
    return spec.has_scales() ? num_tiles() * num_groups() : 0;
  }

  // Byte offset of an element in the payload.
  STOKER_HD constexpr std::int64_t offset(std::int64_t row, std::int64_t col) const {
    const std::int64_t turn = col / cols_per_turn();
    return (row / kTileRows) * tile_bytes() + (turn * kTileRows + row % kTileRows) * 4 +
           (col % cols_per_turn()) * (spec.element_bits() / 8);
  }
  STOKER_HD constexpr std::int64_t scale_index(std::int64_t row, std::int64_t col) const {
    return row / kTileRows * num_groups() + col / spec.group;
  }
};

inline Tile16 tile16_of(const QuantView& view) { return Tile16{view.rows, view.cols, view.spec}; }

// Decodes one element without its scale. Exact.
STOKER_HD inline float decode_element(QuantFormat format, const std::byte* at) {
  std::uint32_t bits = 0;
  switch (format) {
    case QuantFormat::kF32:
      memcpy(&bits, at, 4);
      return bits_to_f32(bits);
    case QuantFormat::kBf16: {
      bf16 value;
      memcpy(&value, at, 2);
      return to_f32(value);
    }
    case QuantFormat::kF16: {
      f16 value;
      memcpy(&value, at, 2);
      return to_f32(value);
    }
    case QuantFormat::kF8E4m3B128:
      return fp8_to_f32(static_cast<std::uint8_t>(*at));
  }
  return 0.0f;
}

// Element [row, col] without its scale, and the scale that belongs to it (1 where the format has
// none), for either layout. The one place that knows both byte orders.
STOKER_HD inline float element_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  const std::int64_t offset = w.layout == WeightLayout::kTile16
                                  ? Tile16{w.rows, w.cols, w.spec}.offset(row, col)
                                  : (row * w.cols + col) * (w.spec.element_bits() / 8);
  return decode_element(w.spec.format, w.payload + offset);
}
STOKER_HD inline float scale_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  if (!w.spec.has_scales()) return 1.0f;
  if (w.layout == WeightLayout::kTile16)
    return w.scales[Tile16{w.rows, w.cols, w.spec}.scale_index(row, col)];
  return w.scales[row / 128 * ((w.cols + 127) / 128) + col / 128];
}

// Re-lays rows [row_begin, row_begin + num_rows) of a row-major matrix into tile16 form: `payload`
// takes Tile16{num_rows, cols}.payload_bytes(), `scales` its scale_count(). Requires: row_begin %
// 16 == 0.
void relay_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                  std::byte* payload, float* scales);

}  // namespace stoker::quant
