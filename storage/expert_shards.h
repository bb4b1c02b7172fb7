// ExpertShards: the experts of one layer as published shards hold them, row-major and at any byte,
// and the way from there into block form.
//
// A block needs rows of gate and up, or of down, and the rows of scales that belong to them: up to
// four pieces of tensors. For reading past the page cache each is widened to whole pages; pieces
// that then touch are one extent. The extents land one after another at the start of the block's
// place, which is large enough for them wherever the pieces lie; land() re-lays them there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quant/expert_block.h"
#include "storage/extent.h"
#include "storage/stored_tensor.h"

namespace stoker::storage {

// What three tensors an expert is; the order of all arrays here.
inline constexpr std::array<const char*, 3> kProjections = {"gate_proj", "up_proj", "down_proj"};

// Immutable, and thread-safe, once all experts are added.
class ExpertShards {
 public:
  struct Expert {
    std::array<const StoredTensor*, 3> weights{};
    std::array<const StoredTensor*, 3> scales{};  // null for formats without scales
  };
  struct BadValue {
    int projection = 0;
    bool scale = false;
    std::int64_t row = 0, col = 0;
  };

  ExpertShards(std::int64_t hidden_size, std::int64_t inter_size, QuantSpec spec);

  // The next expert. Its tensors outlive this object.
  void add(const Expert& expert) { experts_.push_back(expert); }
  int num_experts() const { return static_cast<int>(experts_.size()); }

  const quant::ExpertBlocks& blocks() const { return blocks_; }
  QuantSpec spec() const { return spec_; }

  // Places in a slot: as of the block form, but of the size that reading needs.
  std::int64_t slot_bytes() const { return places_.back(); }
  std::int64_t block_offset(int block) const { return places_[static_cast<std::size_t>(block)]; }
  std::int64_t block_bytes(int block) const {
    return block_offset(block + 1) - block_offset(block);
  }

  // ExtentSource::extents() of one expert.
  int extents(int expert, int block, std::span<Extent> out) const;
  // Brings what the extents brought into block form, in place, unless a value is not finite.
  std::optional<BadValue> land(int expert, int block, std::byte* bytes) const;

 private:
  // Rows of one tensor.
  struct Piece {
    int projection = 0;
    bool scale = false;
    const StoredTensor* tensor = nullptr;
    std::int64_t row_begin = 0, num_rows = 0;
    std::int64_t offset() const { return tensor->offset + row_begin * tensor->row_bytes(); }
    std::int64_t bytes() const { return num_rows * tensor->row_bytes(); }
  };
  struct Pieces {
    std::array<Piece, kMaxExtents> at;
    int count = 0;
    std::span<const Piece> all() const { return {at.data(), static_cast<std::size_t>(count)}; }
  };

  Pieces pieces(int expert, int block) const;
  std::int64_t piece_bytes(const quant::ExpertBlocks::Block& block) const;

  std::int64_t hidden_size_, inter_size_;
  QuantSpec spec_;
  quant::ExpertBlocks blocks_;
  std::vector<std::int64_t> places_;  // of every block, and the end
  std::vector<Expert> experts_;
};

}  // namespace stoker::storage
