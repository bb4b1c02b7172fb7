#include "storage/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>

#include "quant/fp8.h"

namespace stoker::storage {
namespace {

constexpr std::int64_t kAlign = 64;  // of payloads and scales in memory

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct FreeDeleter {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
using AlignedBytes = std::unique_ptr<std::byte, FreeDeleter>;

Result<AlignedBytes> allocate(std::int64_t bytes) {
  AlignedBytes memory(static_cast<std::byte*>(
      std::aligned_alloc(kAlign, static_cast<std::size_t>(std::max(aligned(bytes), kAlign)))));
  if (memory == nullptr) {
    return make_error(ErrorCode::kResource, "no memory for {} bytes", bytes);
  }
  return memory;
}

QuantFormat format_of(StoredType type) {
  switch (type) {
    case StoredType::kF32:
      return QuantFormat::kF32;
    case StoredType::kF16:
      return QuantFormat::kF16;
    case StoredType::kBf16:
      return QuantFormat::kBf16;
    case StoredType::kF8E4m3:
      return QuantFormat::kF8E4m3B128;
    default:
      break;
  }
  CHECK(false, "{} is no weight format", stored_type_info(type).name);
  return QuantFormat::kF32;
}

// The first value whose exponent field is all ones (infinity or NaN), or -1.
template <typename T>
std::int64_t first_not_finite(const std::byte* bytes, std::int64_t count, T exponent_mask) {
  const T* values = reinterpret_cast<const T*>(bytes);
  bool any = false;  // the common case is a scan without exits, which vectorises
  for (std::int64_t i = 0; i < count; ++i) any |= (values[i] & exponent_mask) == exponent_mask;
  if (!any) return -1;
  std::int64_t i = 0;
  while ((values[i] & exponent_mask) != exponent_mask) ++i;
  return i;
}

std::int64_t first_bad_value(StoredType type, const std::byte* bytes, std::int64_t count) {
  switch (type) {
    case StoredType::kF32:
      return first_not_finite<std::uint32_t>(bytes, count, 0x7f800000u);
    case StoredType::kF16:
      return first_not_finite<std::uint16_t>(bytes, count, 0x7c00u);
    case StoredType::kBf16:
      return first_not_finite<std::uint16_t>(bytes, count, 0x7f80u);
    case StoredType::kF8E4m3:
      return first_not_finite<std::uint8_t>(bytes, count, 0x7fu);  // E4M3FN: NaN alone
    default:
      return -1;
  }
}

}  // namespace

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

bool Checkpoint::has(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  return tensor != nullptr && !tensor->ignored;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) {
    if (!tensor.ignored) names.push_back(name);
  }
  return names;
}

bool Checkpoint::has_draft_layer(int layer) const {
  return has(layer_prefix(layer) + "eh_proj.weight");
}

std::int64_t Checkpoint::total_bytes() const {
  return std::accumulate(category_bytes_.begin(), category_bytes_.end(), std::int64_t{0});
}

std::int64_t Checkpoint::loaded_bytes(std::string_view name, const StoredTensor& tensor) const {
  if (tensor.type != StoredType::kF8E4m3) return aligned(tensor.bytes);
  return aligned(tensor.bytes) + aligned(find(scale_name(name))->bytes);
}

Result<QuantView> Checkpoint::load(std::string_view name, const StoredTensor& tensor,
                                   std::byte* dst) const {
  const auto fetch = [&](std::string_view part, const StoredTensor& from, std::byte* to) -> Status {
    RETURN_IF_ERROR(files_[static_cast<std::size_t>(from.file)].read(
                        from.offset, {to, static_cast<std::size_t>(from.bytes)}),
                    "tensor {}", part);
    const std::int64_t bad = first_bad_value(from.type, to, from.rows * from.cols);
    if (bad < 0) return {};
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor {} holds a value that is not finite at [{}, {}]; fetch the file "
                      "again",
                      path_of(from).string(), part, bad / from.cols, bad % from.cols);
  };
  QuantView view;
  view.rows = tensor.rows;
  view.cols = tensor.cols;
  view.spec.format = format_of(tensor.type);
  view.payload = dst;
  RETURN_IF_ERROR(fetch(name, tensor, dst));
  if (tensor.type == StoredType::kF8E4m3) {
    const std::string scale = scale_name(name);
    std::byte* const scales = dst + aligned(tensor.bytes);
    RETURN_IF_ERROR(fetch(scale, *find(scale), scales));
    view.scales = scales;
  }
  return view;
}

Result<HostWeight> Checkpoint::read(std::string_view name, std::int64_t rows,
                                    std::int64_t cols) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr || tensor->ignored || !weight_of_scale(name).empty()) {
    return make_error(ErrorCode::kNotFound, "the checkpoint has no tensor {}", name);
  }
  if (tensor->rows != rows || tensor->cols != cols) {
    return make_error(ErrorCode::kInvalidArgument, "{}: tensor {} is [{}, {}], wanted [{}, {}]",
                      path_of(*tensor).string(), name, tensor->rows, tensor->cols, rows, cols);
  }
  ASSIGN_OR_RETURN(AlignedBytes memory, allocate(loaded_bytes(name, *tensor)), "tensor {}", name);
  HostWeight weight;
  ASSIGN_OR_RETURN(weight.view, load(name, *tensor, memory.get()));
  weight.owner = std::shared_ptr<const void>(memory.release(), std::free);
  return weight;
}

const quant::ExpertBlocks& Checkpoint::blocks(int layer) const {
  const auto it = expert_blocks_.find(layer);
  CHECK(it != expert_blocks_.end(), "layer {} has no routed experts", layer);
  return it->second;
}

QuantSpec Checkpoint::expert_spec(int layer) const {
  const auto it = expert_specs_.find(layer);
  CHECK(it != expert_specs_.end(), "layer {} has no routed experts", layer);
  return it->second;
}

int Checkpoint::num_blocks(int layer) const { return blocks(layer).num_blocks(); }

std::int64_t Checkpoint::expert_bytes(int layer) const { return blocks(layer).expert_bytes(); }

std::int64_t Checkpoint::block_offset(int layer, int block) const {
  return blocks(layer).block(block).offset;
}

std::int64_t Checkpoint::block_bytes(int layer, int block) const {
  return blocks(layer).block(block).bytes;
}

Status Checkpoint::land(ExpertId /*id*/, int /*block*/, int /*replica*/,
                        std::byte* /*bytes*/) const {
  return {};  // read() brings blocks in their final form
}

ExpertPart Checkpoint::part(int layer, int block, const std::byte* block_bytes,
                            DeviceId device) const {
  return blocks(layer).part(block, block_bytes, device);
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
    bytes += loaded_bytes(name, *tensor);
  }
  ASSIGN_OR_RETURN(const AlignedBytes memory, allocate(bytes), "expert {} of layer {}", id.expert,
                   id.layer);
  std::array<QuantView, 3> views;
  for (std::size_t i = 0; i < views.size(); ++i) {
    ASSIGN_OR_RETURN(views[i],
                     load(pieces[i].name, *pieces[i].tensor, memory.get() + pieces[i].at));
  }
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    blocks.write(block, views[0], views[1], views[2], dst + blocks.block(block).offset);
  }
  return {};
}

}  // namespace stoker::storage
