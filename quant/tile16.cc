#include "quant/tile16.h"

#include <algorithm>

#include "core/base/check.h"

namespace stoker::quant {

void relay_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                  std::byte* payload, float* scales) {
  CHECK(src.layout == WeightLayout::kRowMajor && row_begin % kTileRows == 0, "row_begin {}",
        row_begin);
  CHECK(row_begin + num_rows <= src.rows, "rows [{}, {}) of {}", row_begin, row_begin + num_rows,
        src.rows);
  const Tile16 tile{num_rows, src.cols, src.spec};
  const std::int64_t row_bytes = src.cols * src.spec.element_bits() / 8;
  const std::int64_t whole_turns = row_bytes / 4;
  const std::int64_t tail_bytes = row_bytes % 4;
  // Padding rows and columns must read as zero; the last dword of a row may be partly padding.
  if (num_rows % kTileRows != 0 || whole_turns != tile.num_turns()) {
    std::memset(payload, 0, static_cast<std::size_t>(tile.payload_bytes()));
  }
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::byte* from = src.payload + (row_begin + row) * row_bytes;
    std::byte* to = payload + row / kTileRows * tile.tile_bytes() + row % kTileRows * 4;
    for (std::int64_t turn = 0; turn < whole_turns; ++turn) {
      std::memcpy(to + turn * kTileRows * 4, from + turn * 4, 4);
    }
    if (tail_bytes != 0)
      std::memcpy(to + whole_turns * kTileRows * 4, from + whole_turns * 4, tail_bytes);
  }
  if (!src.spec.has_scales()) return;
  for (std::int64_t t = 0; t < tile.num_tiles(); ++t) {
    for (std::int64_t g = 0; g < tile.num_groups(); ++g) {
      scales[t * tile.num_groups() + g] =
          scale_at(src, row_begin + t * kTileRows, g * src.spec.group);
    }
  }
}

}  // namespace stoker::quant
