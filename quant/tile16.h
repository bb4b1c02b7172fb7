// The tile16 layout: how weights lie in memory and in the packed store, so that a CPU thread reads
// one sequential stream in which each vector lane owns an output row, and a GPU warp reads whole
// lines.
//
// Rows are taken in tiles of 16 (the last tile padded with zero rows), inputs in turns of one dword
// per row:
//
//   tile 0: | turn 0: row0 row1 … row15 | turn 1: row0 … row15 | … | tile 1: …      one dword (4
//   bytes) each
//
// A dword holds 8 INT4, 4 INT8 or FP8, 2 BF16/F16 or 1 F32, lower column in the lower bits (little
// endian): column c of an INT4 turn is nibble c % 8. Integers are two's complement. Columns are
// padded with zeros to whole turns and to a multiple of 4, so that every format walks the same four
// partial sums (defined_arithmetic.h).
//
// Scales lie apart, in the order in which a tile needs them:
//
//   FP8:      | tile 0: group0 group1 … | tile 1: …      F32 [num_tiles, num_groups], one for the
//             16 rows of a tile and the 128 columns of a group (16 divides 128, so a tile never
//             spans two scale rows)
//   integers: | tile 0: | group 0: row0 … row15 | group 1: row0 … row15 | … | tile 1: …      BF16
//             [num_tiles, num_groups, 16]; those of padding rows are zero
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
  STOKER_HD constexpr int cols_per_turn() const { return 32 / spec.element_bits(); }
  // What columns are padded to a multiple of.
  STOKER_HD constexpr int col_align() const { return cols_per_turn() > 4 ? cols_per_turn() : 4; }
  STOKER_HD constexpr std::int64_t padded_cols() const {
    return (cols + col_align() - 1) / col_align() * col_align();
  }
  STOKER_HD constexpr std::int64_t num_turns() const { return padded_cols() / cols_per_turn(); }
  STOKER_HD constexpr std::int64_t num_groups() const {
    return (cols + spec.group - 1) / spec.group;
  }
  STOKER_HD constexpr std::int64_t tile_bytes() const { return num_turns() * kTileRows * 4; }
  STOKER_HD constexpr std::int64_t payload_bytes() const { return num_tiles() * tile_bytes(); }
  // Scales of one tile, and of all.
  STOKER_HD constexpr std::int64_t tile_scale_bytes() const {
    return num_groups() * spec.scale_bytes() * (spec.is_integer() ? kTileRows : 1);
  }
  STOKER_HD constexpr std::int64_t scale_bytes() const { return num_tiles() * tile_scale_bytes(); }

  // Byte offset in the payload of the dword that holds an element.
  STOKER_HD constexpr std::int64_t dword_offset(std::int64_t row, std::int64_t col) const {
    return (row / kTileRows) * tile_bytes() +
           (col / cols_per_turn() * kTileRows + row % kTileRows) * 4;
  }
  // Index of its scale.
  STOKER_HD constexpr std::int64_t scale_index(std::int64_t row, std::int64_t col) const {
    const std::int64_t block = row / kTileRows * num_groups() + col / spec.group;
    return spec.is_integer() ? block * kTileRows + row % kTileRows : block;
  }
};

inline Tile16 tile16_of(const QuantView& view) { return Tile16{view.rows, view.cols, view.spec}; }

// Decodes element `index` of those that lie from `at` on, without its scale. Exact.
STOKER_HD inline float decode_element(QuantFormat format, const std::byte* at,
                                      std::int64_t index = 0) {
  std::uint32_t bits = 0;
  switch (format) {
    case QuantFormat::kF32:
      memcpy(&bits, at + index * 4, 4);
      return bits_to_f32(bits);
    case QuantFormat::kBf16: {
      bf16 value;
      memcpy(&value, at + index * 2, 2);
      return to_f32(value);
    }
    case QuantFormat::kF16: {
      f16 value;
      memcpy(&value, at + index * 2, 2);
      return to_f32(value);
    }
    case QuantFormat::kF8E4m3B128:
      return fp8_to_f32(static_cast<std::uint8_t>(at[index]));
    case QuantFormat::kInt8:
      return static_cast<float>(static_cast<std::int8_t>(at[index]));
    case QuantFormat::kInt4: {
      const int nibble = static_cast<int>(at[index / 2]) >> (index % 2 * 4) & 0xf;
      return static_cast<float>(nibble >= 8 ? nibble - 16 : nibble);
    }
  }
  return 0.0f;
}

// Scale `index` of those that lie from `scales` on.
STOKER_HD inline float decode_scale(QuantFormat format, const std::byte* scales,
                                    std::int64_t index) {
  const bool wide = QuantSpec{format}.scale_bytes() == 4;
  return decode_element(wide ? QuantFormat::kF32 : QuantFormat::kBf16, scales, index);
}

// Element [row, col] without its scale, and the scale that belongs to it (1 where the format has
// none), for either layout. The one place that knows both byte orders.
STOKER_HD inline float element_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  if (w.layout == WeightLayout::kRowMajor) {
    return decode_element(w.spec.format, w.payload, row * w.cols + col);
  }
  const Tile16 tile{w.rows, w.cols, w.spec};
  return decode_element(w.spec.format, w.payload + tile.dword_offset(row, col),
                        col % tile.cols_per_turn());
}
STOKER_HD inline float scale_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  if (!w.spec.has_scales()) return 1.0f;
  const std::int64_t index = w.layout == WeightLayout::kTile16
                                 ? Tile16{w.rows, w.cols, w.spec}.scale_index(row, col)
                                 : row / 128 * ((w.cols + 127) / 128) + col / 128;
  return decode_scale(w.spec.format, w.scales, index);
}

// Re-lays rows [row_begin, row_begin + num_rows) of a row-major matrix into tile16 form: `payload`
// takes Tile16{num_rows, cols, spec}.payload_bytes(), `scales` its scale_bytes(). Requires:
// row_begin % 16 == 0; no integers, which have no row-major form.
void relay_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                  std::byte* payload, std::byte* scales);

}  // namespace stoker::quant
