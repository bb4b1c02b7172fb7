#include "prefetch/expert_shapes.h"

namespace stoker {
namespace {

// An address in memory that nobody reads, to make parts of.
const std::byte* somewhere(std::int64_t offset) {
  return reinterpret_cast<const std::byte*>(std::uintptr_t{1} << 20) + offset;
}

}  // namespace

ExpertShapes::ExpertShapes(std::span<const ExpertLayer> layers, const ExpertSource& source,
                           DeviceId device) {
  for (const ExpertLayer& spec : layers) {
    CHECK(spec.layer >= num_layers() && spec.num_experts > 0 && spec.top_k > 0 &&
              spec.top_k <= spec.num_experts,
          "layer {} with {} experts, {} per token, after layer {}", spec.layer, spec.num_experts,
          spec.top_k, num_layers() - 1);
    layers_.resize(static_cast<std::size_t>(spec.layer) + 1);
    ++num_moe_layers_;
    Layer& layer = layers_.back();
    layer.num_experts = spec.num_experts;
    layer.top_k = spec.top_k;
    layer.expert_bytes = source.expert_bytes(spec.layer);
    std::vector<ExpertPart> parts;
    for (int block = 0; block < source.num_blocks(spec.layer); ++block) {
      layer.blocks.push_back(
          {source.block_offset(spec.layer, block), source.block_bytes(spec.layer, block)});
      parts.push_back(
          source.part(spec.layer, block, somewhere(layer.blocks.back().offset), device));
      parts.back().block = block;
      if (parts.back().half != ExpertHalf::kGateUp) continue;
      CHECK(layer.num_gate_up == block, "gate/up block {} of layer {} after a down block", block,
            spec.layer);
      ++layer.num_gate_up;
    }
    for (const ExpertPart& run : in_runs(parts)) {
      layer.runs.push_back({run.block, run.num_blocks, run.stride});
    }
    CHECK(layer.num_gate_up > 0 && layer.num_gate_up < layer.num_blocks(),
          "layer {}: {} blocks, {} of them gate/up", spec.layer, layer.num_blocks(),
          layer.num_gate_up);
    max_blocks_ = std::max(max_blocks_, layer.num_blocks());
    max_experts_ = std::max(max_experts_, layer.num_experts);
    max_top_k_ = std::max(max_top_k_, layer.top_k);
    max_expert_bytes_ = std::max(max_expert_bytes_, layer.expert_bytes);
  }
}

}  // namespace stoker
