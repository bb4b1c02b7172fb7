// ExpertSource: where routed experts are read from, in block form (quant/expert_block.h), whatever
// form they are stored in: storage re-lays experts of a published checkpoint as they land, so that
// kernels and bits are the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/interface/expert_provider.h"

namespace stoker {

// Thread-safe for concurrent reads after opening.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  // Row blocks of every expert of `layer` (a MoE layer), gate/up blocks first.
  virtual int num_blocks(int layer) const = 0;
  // Bytes of one expert of `layer` in block form, and where a block lies among them.
  virtual std::int64_t expert_bytes(int layer) const = 0;
  virtual std::int64_t block_offset(int layer, int block) const = 0;
  // The part that a block is once its bytes lie at `block_bytes`. `use` is left 0.
  virtual ExpertPart part(int layer, int block, const std::byte* block_bytes,
                          DeviceId device) const = 0;

  // Reads a whole expert: `dst` takes expert_bytes(). Blocks until it is there.
  virtual Status read(ExpertId id, std::byte* dst) const = 0;
};

}  // namespace stoker
