// How one routed expert lies in memory and in the packed store: a sequence of row blocks, each
// usable alone.
//
//   | gate/up block 0 | gate/up block 1 | … | down block 0 | down block 1 | …
//
//   gate/up block:  gate payload | up payload | gate scales | up scales      the same output rows
//                                                                            of gate and of up
//   down block:     down payload | down scales
//
// Payloads and scales are in tile16 layout (tile16.h), each padded to a multiple of 64 bytes, and
// blocks to a multiple of 4 KiB. A block holds a multiple of 16 rows, as many as come to about
// 1 MiB.
#pragma once

#include <cstdint>
#include <span>

#include "core/interface/expert_provider.h"
#include "core/tensor/quant_view.h"
#include "quant/tile16.h"

namespace stoker::quant {

inline constexpr std::int64_t kBlockAlign = 4096;
inline constexpr std::int64_t kBlockTarget = std::int64_t{1} << 20;

// Sizes and places within one expert. Immutable; the same for all experts of a layer.
class ExpertBlocks {
 public:
  ExpertBlocks(std::int64_t hidden_size, std::int64_t inter_size, QuantSpec spec);

  struct Block {
    ExpertHalf half;
    std::int64_t row_begin, num_rows;  // output rows
    std::int64_t offset, bytes;        // within the expert; multiples of kBlockAlign
  };

  int num_blocks() const { return num_gate_up_ + num_down_; }
  int num_gate_up_blocks() const { return num_gate_up_; }
  std::int64_t expert_bytes() const;
  Block block(int index) const;  // gate/up blocks first

  // The part that `block` is, given where its bytes lie. `use` is left 0.
  ExpertPart part(int index, const std::byte* block_bytes, DeviceId device = kHost) const;

  // Writes block `index` of an expert from row-major weights: re-lays those that have the spec of
  // the blocks, and quantises floating point of any format where the blocks hold integers
  // (quantize.h). `dst` takes block(index).bytes.
  void write(int index, const QuantView& gate, const QuantView& up, const QuantView& down,
             std::byte* dst) const;

 private:
  std::int64_t gate_up_bytes(std::int64_t num_rows) const;
  std::int64_t down_bytes(std::int64_t num_rows) const;

  std::int64_t hidden_size_, inter_size_;
  QuantSpec spec_;
  std::int64_t gate_up_rows_, down_rows_;  // rows of a whole block
  int num_gate_up_, num_down_;
};

}  // namespace stoker::quant
