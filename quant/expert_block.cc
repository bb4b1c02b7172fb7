#include "quant/expert_block.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "quant/quantize.h"

namespace stoker::quant {
namespace {

std::int64_t align_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }
std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

// Rows of a block of about kBlockTarget bytes: a whole number of tiles, and of pairs of tiles where
// they are small enough, since kernels take them in pairs where rows are many.
std::int64_t rows_per_block(std::int64_t bytes_per_tile) {
  const std::int64_t tiles = std::max<std::int64_t>(1, kBlockTarget / bytes_per_tile);
  return (tiles > 1 ? tiles / 2 * 2 : 1) * kTileRows;
}

// Payloads are multiples of it as they are: a turn has 64 bytes.
std::int64_t padded_scale_bytes(const Tile16& tile) { return align_up(tile.scale_bytes(), 64); }

}  // namespace

ExpertBlocks::ExpertBlocks(std::int64_t hidden_size, std::int64_t inter_size, QuantSpec spec)
    : hidden_size_(hidden_size), inter_size_(inter_size), spec_(spec) {
  gate_up_rows_ = rows_per_block(2 * Tile16{kTileRows, hidden_size, spec}.tile_bytes());
  down_rows_ = rows_per_block(Tile16{kTileRows, inter_size, spec}.tile_bytes());
  num_gate_up_ = static_cast<int>(ceil_div(inter_size, gate_up_rows_));
  num_down_ = static_cast<int>(ceil_div(hidden_size, down_rows_));
}

std::int64_t ExpertBlocks::gate_up_bytes(std::int64_t num_rows) const {
  const Tile16 tile{num_rows, hidden_size_, spec_};
  return align_up(2 * (tile.payload_bytes() + padded_scale_bytes(tile)), kBlockAlign);
}

std::int64_t ExpertBlocks::down_bytes(std::int64_t num_rows) const {
  const Tile16 tile{num_rows, inter_size_, spec_};
  return align_up(tile.payload_bytes() + padded_scale_bytes(tile), kBlockAlign);
}

ExpertBlocks::Block ExpertBlocks::block(int index) const {
  CHECK(index >= 0 && index < num_blocks(), "block {} of {}", index, num_blocks());
  Block block{};
  if (index < num_gate_up_) {
    block.half = ExpertHalf::kGateUp;
    block.row_begin = index * gate_up_rows_;
    block.num_rows = std::min(gate_up_rows_, inter_size_ - block.row_begin);
    block.offset = index * gate_up_bytes(gate_up_rows_);
    block.bytes = gate_up_bytes(block.num_rows);
    return block;
  }
  const int down = index - num_gate_up_;
  const Block last_gate_up = this->block(num_gate_up_ - 1);
  block.half = ExpertHalf::kDown;
  block.row_begin = down * down_rows_;
  block.num_rows = std::min(down_rows_, hidden_size_ - block.row_begin);
  block.offset = last_gate_up.offset + last_gate_up.bytes + down * down_bytes(down_rows_);
  block.bytes = down_bytes(block.num_rows);
  return block;
}

std::int64_t ExpertBlocks::expert_bytes() const {
  const Block last = block(num_blocks() - 1);
  return last.offset + last.bytes;
}

ExpertPart ExpertBlocks::part(int index, const std::byte* block_bytes, DeviceId device) const {
  const Block at = block(index);
  const std::int64_t cols = at.half == ExpertHalf::kGateUp ? hidden_size_ : inter_size_;
  const Tile16 tile{at.num_rows, cols, spec_};
  const auto matrix = [&](const std::byte* payload, const std::byte* scales) {
    QuantView view;
    view.payload = payload;
    view.scales = spec_.has_scales() ? scales : nullptr;
    view.rows = at.num_rows;
    view.cols = cols;
    view.spec = spec_;
    view.layout = WeightLayout::kTile16;
    view.device = device;
    return view;
  };
  ExpertPart part;
  part.half = at.half;
  part.row_begin = static_cast<int>(at.row_begin);
  part.num_rows = static_cast<int>(at.num_rows);
  const std::byte* payload = block_bytes;
  if (at.half == ExpertHalf::kGateUp) {
    const std::byte* scales = payload + 2 * tile.payload_bytes();
    part.gate = matrix(payload, scales);
    part.up = matrix(payload + tile.payload_bytes(), scales + padded_scale_bytes(tile));
  } else {
    part.down = matrix(payload, payload + tile.payload_bytes());
  }
  return part;
}

void ExpertBlocks::write(int index, const QuantView& gate, const QuantView& up,
                         const QuantView& down, std::byte* dst) const {
  const Block at = block(index);
  std::memset(dst, 0, static_cast<std::size_t>(at.bytes));
  const ExpertPart places = part(index, dst);
  const auto put = [&](const QuantView& src, const QuantView& to) {
    CHECK(src.cols == to.cols, "{} columns for {}", src.cols, to.cols);
    auto* const payload = const_cast<std::byte*>(to.payload);
    auto* const scales = const_cast<std::byte*>(to.scales);
    if (src.spec == spec_) {
      relay_tile16(src, at.row_begin, at.num_rows, payload, scales);
    } else {
      quantize_tile16(src, at.row_begin, at.num_rows, spec_, payload, scales);
    }
  };
  if (at.half == ExpertHalf::kGateUp) {
    put(gate, places.gate);
    put(up, places.up);
  } else {
    put(down, places.down);
  }
}

}  // namespace stoker::quant
