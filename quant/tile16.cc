#include "quant/tile16.h"

#include <algorithm>
#include <type_traits>

#include "core/base/check.h"

namespace stoker::quant {
namespace {

// Whole turns of `rows` rows. Turn by turn, so that every line is written once; each row is read as
// a stream of its own.
template <typename Rows>
void relay_turns(const std::byte* src, std::int64_t row_bytes, std::int64_t num_turns, Rows rows,
                 std::byte* dst) {
  for (std::int64_t turn = 0; turn < num_turns; ++turn) {
    for (int row = 0; row < rows; ++row) {
      std::memcpy(dst + (turn * kTileRows + row) * 4, src + row * row_bytes + turn * 4, 4);
    }
  }
}

}  // namespace

void relay_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                  std::byte* payload, std::byte* scales) {
  CHECK(
      src.layout == WeightLayout::kRowMajor && !src.spec.is_integer() && row_begin % kTileRows == 0,
      "row_begin {}", row_begin);
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
  for (std::int64_t first = 0; first < num_rows; first += kTileRows) {
    const std::byte* const from = src.payload + (row_begin + first) * row_bytes;
    std::byte* const to = payload + first / kTileRows * tile.tile_bytes();
    const auto rows = static_cast<int>(std::min<std::int64_t>(kTileRows, num_rows - first));
    if (rows == kTileRows) {  // unrolled
      relay_turns(from, row_bytes, whole_turns, std::integral_constant<int, kTileRows>{}, to);
    } else {
      relay_turns(from, row_bytes, whole_turns, rows, to);
    }
    if (tail_bytes == 0) continue;
    for (int row = 0; row < rows; ++row) {
      std::memcpy(to + (whole_turns * kTileRows + row) * 4,
                  from + row * row_bytes + whole_turns * 4, static_cast<std::size_t>(tail_bytes));
    }
  }
  if (!src.spec.has_scales()) return;
  for (std::int64_t t = 0; t < tile.num_tiles(); ++t) {
    for (std::int64_t g = 0; g < tile.num_groups(); ++g) {
      const float scale = scale_at(src, row_begin + t * kTileRows, g * src.spec.group);
      std::memcpy(scales + (t * tile.num_groups() + g) * 4, &scale, 4);
    }
  }
}

}  // namespace stoker::quant
