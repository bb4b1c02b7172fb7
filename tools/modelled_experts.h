// Experts that are sizes and nothing else, for the simulator.
#pragma once

#include "core/interface/expert_source.h"
#include "core/model/model_config.h"
#include "quant/expert_block.h"

namespace stoker::tools {

// The blocks that a store of `config` with experts in `spec` has, without bytes: whatever address
// it is given, null included, is never followed.
class ModelledExperts final : public ExpertSource {
 public:
  ModelledExperts(const ModelConfig& config, QuantSpec spec)
      : blocks_(config.hidden_size, config.moe_intermediate_size, spec) {}

  int num_blocks(int /*layer*/) const override { return blocks_.num_blocks(); }
  std::int64_t expert_bytes(int /*layer*/) const override { return blocks_.expert_bytes(); }
  std::int64_t block_offset(int /*layer*/, int block) const override {
    return blocks_.block(block).offset;
  }
  std::int64_t block_bytes(int /*layer*/, int block) const override {
    return blocks_.block(block).bytes;
  }
  // Which rows of which half; the views stay empty.
  ExpertPart part(int /*layer*/, int block, const std::byte* /*block_bytes*/,
                  DeviceId /*device*/) const override {
    const quant::ExpertBlocks::Block place = blocks_.block(block);
    ExpertPart part;
    part.half = place.half;
    part.row_begin = static_cast<int>(place.row_begin);
    part.num_rows = static_cast<int>(place.num_rows);
    return part;
  }
  Status land(ExpertId /*id*/, int /*block*/, int /*replica*/,
              std::byte* /*bytes*/) const override {
    return {};
  }
  Status read(ExpertId /*id*/, std::byte* /*dst*/) const override {
    return Error(ErrorCode::kUnsupported, "modelled experts have no bytes");
  }

 private:
  quant::ExpertBlocks blocks_;
};

}  // namespace stoker::tools
