#include "storage/store.h"

#include "storage/checksum.h"

namespace stoker::storage {

bool Store::is_store(const std::filesystem::path& dir) {
  std::error_code ignored;
  return std::filesystem::exists(dir / kManifestFile, ignored);
}

const Store::Place& Store::place(ExpertId id) const {
  CHECK(id.layer >= 0 && std::cmp_less(id.layer, places_.size()), "layer {}", id.layer);
  const std::vector<Place>& layer = places_[static_cast<std::size_t>(id.layer)];
  CHECK(id.expert >= 0 && std::cmp_less(id.expert, layer.size()), "expert {} of layer {}",
        id.expert, id.layer);
  return layer[static_cast<std::size_t>(id.expert)];
}

int Store::num_replicas(ExpertId id) const {
  return static_cast<int>(expert_files_[static_cast<std::size_t>(place(id).file)].replicas.size());
}

int Store::extents(ExpertId id, int block, int replica, std::span<Extent> out) const {
  const Place& at = place(id);
  const std::vector<int>& replicas = expert_files_[static_cast<std::size_t>(at.file)].replicas;
  if (replica < 0 || std::cmp_greater_equal(replica, replicas.size())) return 0;
  const quant::ExpertBlocks::Block where = blocks(id.layer).block(block);
  out[0] = {replicas[static_cast<std::size_t>(replica)], at.offset + where.offset, where.bytes, 0};
  return 1;
}

Status Store::land(ExpertId id, int block, int replica, std::byte* bytes) const {
  const Place& at = place(id);
  const ExpertFile& file = expert_files_[static_cast<std::size_t>(at.file)];
  CHECK(replica >= 0 && std::cmp_less(replica, file.replicas.size()), "copy {} of {}", replica,
        file.replicas.size());
  const quant::ExpertBlocks::Block where = blocks(id.layer).block(block);
  const int handle = file.replicas[static_cast<std::size_t>(replica)];
  const std::uint64_t expected =
      file.checksums[static_cast<std::size_t>(at.first_checksum + block)];
  RETURN_IF_ERROR(
      check_bytes({bytes, static_cast<std::size_t>(where.bytes)}, expected,
                  extent_files_[static_cast<std::size_t>(handle)].path, at.offset + where.offset),
      "block {} of expert {} of layer {}", block, id.expert, id.layer);
  return {};
}

Status Store::read(ExpertId id, std::byte* dst) const {
  const Place& at = place(id);
  const std::vector<int>& replicas = expert_files_[static_cast<std::size_t>(at.file)].replicas;
  for (int block = 0; block < num_blocks(id.layer); ++block) {
    const quant::ExpertBlocks::Block where = blocks(id.layer).block(block);
    std::byte* const to = dst + where.offset;
    Status status;
    for (int replica = 0; std::cmp_less(replica, replicas.size()); ++replica) {
      const int handle = replicas[static_cast<std::size_t>(replica)];
      status = handles_[static_cast<std::size_t>(handle)].read(
          at.offset + where.offset, {to, static_cast<std::size_t>(where.bytes)});
      if (status.ok()) status = land(id, block, replica, to);
      if (status.ok()) break;
    }
    RETURN_IF_ERROR(status);
  }
  return {};
}

}  // namespace stoker::storage
