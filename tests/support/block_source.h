// Experts that are patterns of bytes: every block's content follows from its name, so that whoever
// reads a part knows whether it holds what it should. For tests of paging that need no weights.
#pragma once

#include <cstddef>

#include "core/interface/expert_source.h"

namespace stoker::test {

class BlockSource final : public ExpertSource {
 public:
  static constexpr std::int64_t kBlockBytes = 4096;

  // Every layer's experts have `num_gate_up` blocks of 4 KiB, then `num_down`.
  BlockSource(int num_gate_up, int num_down, int num_replicas = 1)
      : num_gate_up_(num_gate_up), num_down_(num_down), num_replicas_(num_replicas) {}

  int num_blocks(int /*layer*/) const override { return num_gate_up_ + num_down_; }
  std::int64_t expert_bytes(int layer) const override { return num_blocks(layer) * kBlockBytes; }
  std::int64_t block_offset(int /*layer*/, int block) const override { return block * kBlockBytes; }
  std::int64_t block_bytes(int /*layer*/, int /*block*/) const override { return kBlockBytes; }
  // row_begin is the block's number; payload of gate or down is where it lies.
  ExpertPart part(int layer, int block, const std::byte* block_bytes,
                  DeviceId device) const override;
  int num_replicas(ExpertId /*id*/) const override { return num_replicas_; }
  // kCorrupt unless `bytes` hold what holds() expects.
  Status land(ExpertId id, int block, int replica, std::byte* bytes) const override;
  Status read(ExpertId id, std::byte* dst) const override;

  static bool holds(ExpertId id, int block, const std::byte* bytes);

 private:
  int num_gate_up_, num_down_, num_replicas_;
};

}  // namespace stoker::test
