#include "tests/support/block_source.h"

#include <cstring>

namespace stoker::test {
namespace {

std::uint64_t word(ExpertId id, int block, int index) {
  std::uint64_t z = (static_cast<std::uint64_t>(id.layer) << 48) ^
                    (static_cast<std::uint64_t>(id.expert) << 32) ^
                    (static_cast<std::uint64_t>(block) << 16) ^ static_cast<std::uint64_t>(index);
  z = (z + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
  return z ^ (z >> 29);
}

constexpr int kWords = BlockSource::kBlockBytes / 8;

}  // namespace

ExpertPart BlockSource::part(int /*layer*/, int block, const std::byte* block_bytes,
                             DeviceId device) const {
  ExpertPart part;
  part.half = block < num_gate_up_ ? ExpertHalf::kGateUp : ExpertHalf::kDown;
  part.row_begin = block;
  part.num_rows = 1;
  QuantView& view = part.half == ExpertHalf::kGateUp ? part.gate : part.down;
  view.payload = block_bytes;
  view.device = device;
  return part;
}

bool BlockSource::holds(ExpertId id, int block, const std::byte* bytes) {
  for (int i = 0; i < kWords; ++i) {
    std::uint64_t found = 0;
    std::memcpy(&found, bytes + 8 * i, 8);
    if (found != word(id, block, i)) return false;
  }
  return true;
}

Status BlockSource::land(ExpertId id, int block, int replica, std::byte* bytes) const {
  if (holds(id, block, bytes)) return {};
  return make_error(ErrorCode::kCorrupt, "copy {}: block {} of expert {}.{} is not what it was",
                    replica, block, id.layer, id.expert);
}

Status BlockSource::read(ExpertId id, std::byte* dst) const {
  for (int block = 0; block < num_gate_up_ + num_down_; ++block) {
    for (int i = 0; i < kWords; ++i) {
      const std::uint64_t value = word(id, block, i);
      std::memcpy(dst + block * kBlockBytes + 8 * i, &value, 8);
    }
  }
  return {};
}

}  // namespace stoker::test
