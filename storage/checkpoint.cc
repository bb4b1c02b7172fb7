#include "storage/checkpoint.h"

#include <array>
#include <string>
#include <vector>

#include "storage/aligned_bytes.h"

namespace stoker::storage {

const ExpertShards& Checkpoint::shards(int layer) const {
  const auto it = shards_.find(layer);
  CHECK(it != shards_.end(), "layer {} has no routed experts", layer);
  return it->second;
}

int Checkpoint::extents(ExpertId id, int block, int replica, std::span<Extent> out) const {
  return replica > 0 ? 0 : shards(id.layer).extents(id.expert, block, out);
}

Status Checkpoint::land(ExpertId id, int block, int /*replica*/, std::byte* bytes) const {
  const std::optional<ExpertShards::BadValue> bad = shards(id.layer).land(id.expert, block, bytes);
  if (!bad) return {};
  std::string name =
      expert_tensor_name(id, kProjections[static_cast<std::size_t>(bad->projection)]);
  if (bad->scale) name = scale_name(name);
  return tensors_.not_finite(name, *find(name), bad->row, bad->col);
}

Status Checkpoint::read(ExpertId id, std::byte* dst) const {
  const quant::ExpertBlocks& blocks = this->blocks(id.layer);
  CHECK(id.expert >= 0 && id.expert < config_.n_routed_experts, "expert {} of {}", id.expert,
        config_.n_routed_experts);
  struct Piece {
    std::string name;
    const StoredTensor* tensor;
    std::int64_t at;
  };
  std::vector<Piece> pieces;
  std::int64_t bytes = 0;
  for (const char* projection : kProjections) {
    std::string name = expert_tensor_name(id, projection);
    const StoredTensor* tensor = find(name);
    pieces.push_back({name, tensor, bytes});
    bytes += tensors_.loaded_bytes(name, *tensor);
  }
  ASSIGN_OR_RETURN(const AlignedBytes memory, allocate_aligned(bytes), "expert {} of layer {}",
                   id.expert, id.layer);
  std::array<QuantView, 3> views;
  for (std::size_t i = 0; i < views.size(); ++i) {
    ASSIGN_OR_RETURN(views[i],
                     tensors_.load(pieces[i].name, *pieces[i].tensor, memory.get() + pieces[i].at));
  }
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    blocks.write(block, views[0], views[1], views[2], dst + block_offset(id.layer, block));
  }
  return {};
}

}  // namespace stoker::storage
