#include "storage/checkpoint.h"

#include <array>
#include <string>
#include <vector>

#include "storage/aligned_bytes.h"

namespace stoker::storage {

Status Checkpoint::land(ExpertId /*id*/, int /*block*/, int /*replica*/,
                        std::byte* /*bytes*/) const {
  return {};  // read() brings blocks in their final form
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
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
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
    blocks.write(block, views[0], views[1], views[2], dst + blocks.block(block).offset);
  }
  return {};
}

}  // namespace stoker::storage
