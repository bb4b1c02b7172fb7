#include "storage/tensor_files.h"

#include <algorithm>
#include <utility>

#include "core/model/tensor_table.h"
#include "quant/fp8.h"
#include "storage/aligned_bytes.h"
#include "storage/checksum.h"

namespace stoker::storage {
namespace {

constexpr std::int64_t kAlign = 64;  // of payloads and scales in memory

std::int64_t aligned(std::int64_t bytes) { return align_up(bytes, kAlign); }

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

QuantFormat quant_format_of(StoredType type) {
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

Result<SafetensorsHeader> read_safetensors_header(const ReadFile& file) {
  std::vector<std::byte> head(static_cast<std::size_t>(std::min<std::int64_t>(8, file.size())));
  RETURN_IF_ERROR(file.read(0, head));
  ASSIGN_OR_RETURN(const std::int64_t data_begin, safetensors_data_begin(head, file.size()), "{}",
                   file.path().string());
  head.resize(static_cast<std::size_t>(data_begin));
  RETURN_IF_ERROR(file.read(0, head));
  ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors(head, file.size()), "{}",
                   file.path().string());
  return header;
}

Status TensorFiles::add(ReadFile file) {
  ASSIGN_OR_RETURN(const SafetensorsHeader header, read_safetensors_header(file));
  const int index = static_cast<int>(files_.size());
  files_.push_back(std::move(file));
  for (const SafetensorsEntry& entry : header.entries) {
    StoredTensor tensor;
    tensor.file = index;
    tensor.type = entry.type;
    tensor.offset = entry.offset;
    tensor.bytes = entry.bytes;
    tensor.rank = static_cast<int>(entry.shape.size());
    tensor.rows = tensor.rank >= 2 ? entry.shape[0] : 1;
    tensor.cols = tensor.rank >= 2 ? entry.shape[1] : tensor.rank == 1 ? entry.shape[0] : 1;
    const auto [at, added] = tensors_.emplace(entry.name, tensor);
    if (added) continue;
    return make_error(ErrorCode::kCorrupt, "tensor {} is stored twice, in {} and in {}", entry.name,
                      path_of(at->second).string(), path_of(tensor).string());
  }
  return {};
}

void TensorFiles::ignore(std::string_view name) {
  const auto it = tensors_.find(name);
  CHECK(it != tensors_.end(), "{}", name);
  it->second.ignored = true;
}

void TensorFiles::remove(std::string_view name) {
  const auto it = tensors_.find(name);
  CHECK(it != tensors_.end(), "{}", name);
  tensors_.erase(it);
}

void TensorFiles::set_checksum(std::string_view name, std::uint64_t checksum) {
  const auto it = tensors_.find(name);
  CHECK(it != tensors_.end(), "{}", name);
  it->second.checksum = checksum;
}

const StoredTensor* TensorFiles::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

bool TensorFiles::has(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  return tensor != nullptr && !tensor->ignored;
}

std::vector<std::string> TensorFiles::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) {
    if (!tensor.ignored) names.push_back(name);
  }
  return names;
}

std::int64_t TensorFiles::loaded_bytes(std::string_view name, const StoredTensor& tensor) const {
  if (tensor.type != StoredType::kF8E4m3) return aligned(tensor.bytes);
  return aligned(tensor.bytes) + aligned(find(scale_name(name))->bytes);
}

Status TensorFiles::check_finite(std::string_view name, const StoredTensor& tensor,
                                 std::int64_t first, std::span<const std::byte> bytes) const {
  const std::int64_t count = std::ssize(bytes) / stored_type_info(tensor.type).bytes;
  const std::int64_t bad = first_bad_value(tensor.type, bytes.data(), count);
  if (bad < 0) return {};
  const std::int64_t element = first + bad;
  return make_error(ErrorCode::kCorrupt,
                    "{}: tensor {} holds a value that is not finite at [{}, {}]; fetch the file "
                    "again",
                    path_of(tensor).string(), name, element / tensor.cols, element % tensor.cols);
}

Result<QuantView> TensorFiles::load(std::string_view name, const StoredTensor& tensor,
                                    std::byte* dst) const {
  const auto fetch = [&](std::string_view part, const StoredTensor& from, std::byte* to) -> Status {
    const std::span<std::byte> bytes(to, static_cast<std::size_t>(from.bytes));
    RETURN_IF_ERROR(files_[static_cast<std::size_t>(from.file)].read(from.offset, bytes),
                    "tensor {}", part);
    if (from.checksum) {
      RETURN_IF_ERROR(check_bytes(bytes, *from.checksum, path_of(from), from.offset), "tensor {}",
                      part);
    }
    return check_finite(part, from, 0, bytes);
  };
  QuantView view;
  view.rows = tensor.rows;
  view.cols = tensor.cols;
  view.spec.format = quant_format_of(tensor.type);
  view.payload = dst;
  RETURN_IF_ERROR(fetch(name, tensor, dst));
  if (tensor.type == StoredType::kF8E4m3) {
    const std::string scale = scale_name(name);
    std::byte* const scales = dst + aligned(tensor.bytes);
    RETURN_IF_ERROR(fetch(scale, *find(scale), scales));
    view.scales = reinterpret_cast<const float*>(scales);
  }
  return view;
}

Result<HostWeight> TensorFiles::read(std::string_view name, std::int64_t rows,
                                     std::int64_t cols) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr || tensor->ignored || !weight_of_scale(name).empty()) {
    return make_error(ErrorCode::kNotFound, "the model has no tensor {}", name);
  }
  if (tensor->rows != rows || tensor->cols != cols) {
    return make_error(ErrorCode::kInvalidArgument, "{}: tensor {} is [{}, {}], wanted [{}, {}]",
                      path_of(*tensor).string(), name, tensor->rows, tensor->cols, rows, cols);
  }
  ASSIGN_OR_RETURN(AlignedBytes memory, allocate_aligned(loaded_bytes(name, *tensor), kAlign),
                   "tensor {}", name);
  HostWeight weight;
  ASSIGN_OR_RETURN(weight.view, load(name, *tensor, memory.get()));
  weight.owner = std::shared_ptr<const void>(memory.release(), std::free);
  return weight;
}

}  // namespace stoker::storage
