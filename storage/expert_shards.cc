#include "storage/expert_shards.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"

namespace stoker::storage {
namespace {

constexpr std::int64_t kScaleRows = 128;  // of a weight that share a row of scales
constexpr std::int64_t kAlign = 64;       // of pieces in scratch memory

std::int64_t floor_to(std::int64_t n, std::int64_t to) { return n / to * to; }
std::int64_t ceil_to(std::int64_t n, std::int64_t to) { return floor_to(n + to - 1, to); }

// The most that a piece takes when widened to pages, wherever it begins.
std::int64_t widened(std::int64_t bytes) { return ceil_to(bytes, kExtentAlign) + kExtentAlign; }

// Scale rows of weight rows [begin, begin + count).
std::int64_t num_scale_rows(std::int64_t begin, std::int64_t count) {
  return (begin + count - 1) / kScaleRows - begin / kScaleRows + 1;
}

// Grown to what the largest block needs, once per thread that lands blocks.
std::byte* scratch(std::int64_t bytes) {
  thread_local std::vector<std::byte> memory;
  if (std::ssize(memory) < bytes + kAlign) memory.resize(static_cast<std::size_t>(bytes + kAlign));
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  return memory.data() + (kAlign - address % kAlign) % kAlign;
}

}  // namespace

ExpertShards::ExpertShards(std::int64_t hidden_size, std::int64_t inter_size, QuantSpec spec)
    : hidden_size_(hidden_size),
      inter_size_(inter_size),
      spec_(spec),
      blocks_(hidden_size, inter_size, spec) {
  places_.push_back(0);
  for (int i = 0; i < blocks_.num_blocks(); ++i) {
    const quant::ExpertBlocks::Block block = blocks_.block(i);
    places_.push_back(places_.back() + std::max(block.bytes, piece_bytes(block)));
  }
}

std::int64_t ExpertShards::piece_bytes(const quant::ExpertBlocks::Block& block) const {
  const bool gate_up = block.half == ExpertHalf::kGateUp;
  const std::int64_t cols = gate_up ? hidden_size_ : inter_size_;
  std::int64_t bytes = widened(block.num_rows * cols * spec_.element_bits() / 8);
  if (spec_.has_scales()) {
    bytes += widened(num_scale_rows(block.row_begin, block.num_rows) * ceil_to(cols, spec_.group) /
                     spec_.group * static_cast<std::int64_t>(sizeof(float)));
  }
  return gate_up ? 2 * bytes : bytes;
}

ExpertShards::Pieces ExpertShards::pieces(int expert, int block) const {
  const quant::ExpertBlocks::Block rows = blocks_.block(block);
  const Expert& tensors = experts_[static_cast<std::size_t>(expert)];
  Pieces pieces;
  const auto add = [&](int projection) {
    const auto at = static_cast<std::size_t>(projection);
    pieces.at[static_cast<std::size_t>(pieces.count++)] = {projection, false, tensors.weights[at],
                                                           rows.row_begin, rows.num_rows};
    if (!spec_.has_scales()) return;
    pieces.at[static_cast<std::size_t>(pieces.count++)] = {
        projection, true, tensors.scales[at], rows.row_begin / kScaleRows,
        num_scale_rows(rows.row_begin, rows.num_rows)};
  };
  if (rows.half == ExpertHalf::kGateUp) {
    add(0);
    add(1);
  } else {
    add(2);
  }
  return pieces;
}

int ExpertShards::extents(int expert, int block, std::span<Extent> out) const {
  // 1. Pieces, widened to pages, in order of place.
  int count = 0;
  const Pieces wanted = pieces(expert, block);
  for (const Piece& piece : wanted.all()) {
    const std::int64_t begin = floor_to(piece.offset(), kExtentAlign);
    const std::int64_t end = ceil_to(piece.offset() + piece.bytes(), kExtentAlign);
    out[static_cast<std::size_t>(count++)] = {piece.tensor->file, begin, end - begin, 0};
  }
  std::sort(out.begin(), out.begin() + count, [](const Extent& a, const Extent& b) {
    return a.file != b.file ? a.file < b.file : a.offset < b.offset;
  });
  // 2. Those that touch are one; then they are laid one after another.
  std::size_t last = 0;
  for (std::size_t i = 1; i < static_cast<std::size_t>(count); ++i) {
    if (out[i].file == out[last].file && out[i].offset <= out[last].offset + out[last].bytes) {
      const std::int64_t end = out[i].offset + out[i].bytes;
      out[last].bytes = std::max(out[last].bytes, end - out[last].offset);
    } else {
      out[++last] = out[i];
    }
    out[last].dst_offset = last == 0 ? 0 : out[last - 1].dst_offset + out[last - 1].bytes;
  }
  return static_cast<int>(last) + 1;
}

std::optional<ExpertShards::BadValue> ExpertShards::land(int expert, int block,
                                                         std::byte* bytes) const {
  const Pieces pieces = this->pieces(expert, block);
  const quant::ExpertBlocks::Block rows = blocks_.block(block);
  // A view of rows in the middle of a matrix begins where a row of scales does.
  const std::int64_t skipped = spec_.has_scales() ? rows.row_begin % kScaleRows : 0;

  // 1. Pieces to aligned places, with room before each payload for the rows skipped.
  std::array<Extent, kMaxExtents> extents;
  const int num_extents = this->extents(expert, block, extents);
  std::int64_t size = 0;
  std::array<std::int64_t, kMaxExtents> at{};
  for (std::size_t i = 0; i < pieces.all().size(); ++i) {
    const Piece& piece = pieces.at[i];
    if (!piece.scale) size += ceil_to(skipped * piece.tensor->row_bytes(), kAlign);
    at[i] = size;
    size += ceil_to(piece.bytes(), kAlign);
  }
  std::byte* const scratch = storage::scratch(size);
  for (std::size_t i = 0; i < pieces.all().size(); ++i) {
    const Piece& piece = pieces.at[i];
    const auto holds = [&](const Extent& extent) {
      return extent.file == piece.tensor->file && extent.offset <= piece.offset() &&
             piece.offset() < extent.offset + extent.bytes;
    };
    const auto extent = std::find_if(extents.begin(), extents.begin() + num_extents, holds);
    std::memcpy(scratch + at[i], bytes + extent->dst_offset + (piece.offset() - extent->offset),
                static_cast<std::size_t>(piece.bytes()));
  }

  // 2. Published shards carry no checksums; that all values are finite can be checked.
  for (std::size_t i = 0; i < pieces.all().size(); ++i) {
    const Piece& piece = pieces.at[i];
    const std::int64_t cols = piece.tensor->cols;
    const std::int64_t bad =
        first_not_finite(piece.tensor->type, scratch + at[i], piece.num_rows * cols);
    if (bad < 0) continue;
    return BadValue{piece.projection, piece.scale, piece.row_begin + bad / cols, bad % cols};
  }

  // 3. Block form, as quant::ExpertBlocks::write() gives it.
  std::memset(bytes + rows.bytes - quant::kBlockAlign, 0, quant::kBlockAlign);  // the padding
  const ExpertPart part = blocks_.part(block, bytes);
  const std::array<const QuantView*, 3> places = {&part.gate, &part.up, &part.down};
  for (std::size_t i = 0; i < pieces.all().size(); ++i) {
    const Piece& piece = pieces.at[i];
    if (piece.scale) continue;
    const QuantView& to = *places[static_cast<std::size_t>(piece.projection)];
    QuantView from;
    from.payload = scratch + at[i] - skipped * piece.tensor->row_bytes();
    from.scales = spec_.has_scales() ? scratch + at[i + 1] : nullptr;
    from.rows = skipped + rows.num_rows;
    from.cols = piece.tensor->cols;
    from.spec = spec_;
    quant::relay_tile16(from, skipped, rows.num_rows, const_cast<std::byte*>(to.payload),
                        const_cast<std::byte*>(to.scales));
  }
  return {};
}

}  // namespace stoker::storage
