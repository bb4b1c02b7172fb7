// ExpertShapes: how the experts of each layer are cut into blocks, asked of the source once.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "core/interface/expert_source.h"

namespace stoker {

// A layer with routed experts.
struct ExpertLayer {
  int layer = 0;  // index into the layer table
  int num_experts = 0;
  int top_k = 0;
};

class ExpertShapes {
 public:
  struct Block {
    std::int64_t offset = 0, bytes = 0;
  };
  // Blocks of one half that follow one another at equal distances and have as many rows each.
  struct Run {
    int first_block = 0, num_blocks = 1;
    std::int64_t stride = 0;
  };
  struct Layer {
    int num_experts = 0, top_k = 0;
    int num_gate_up = 0;  // blocks [0, num_gate_up) are gate/up, the rest down
    std::int64_t expert_bytes = 0;
    std::vector<Block> blocks;  // empty: a layer without routed experts
    std::vector<Run> runs;      // all blocks, in their order

    int num_blocks() const { return static_cast<int>(blocks.size()); }
  };

  ExpertShapes(std::span<const ExpertLayer> layers, const ExpertSource& source, DeviceId device);

  // Requires: `layer` has experts.
  const Layer& layer(int layer) const {
    CHECK(layer >= 0 && layer < num_layers() && !layers_[layer].blocks.empty(),
          "layer {} has no experts", layer);
    return layers_[layer];
  }
  bool has_experts(int layer) const {
    return layer >= 0 && layer < num_layers() && !layers_[layer].blocks.empty();
  }
  int num_layers() const {
    return static_cast<int>(layers_.size());
  }  // up to the last with experts
  int num_moe_layers() const { return num_moe_layers_; }
  int max_blocks() const { return max_blocks_; }
  int max_experts() const { return max_experts_; }
  int max_top_k() const { return max_top_k_; }
  std::int64_t max_expert_bytes() const { return max_expert_bytes_; }

 private:
  std::vector<Layer> layers_;  // by layer index
  int num_moe_layers_ = 0;
  int max_blocks_ = 0, max_experts_ = 0, max_top_k_ = 0;
  std::int64_t max_expert_bytes_ = 0;
};

}  // namespace stoker
