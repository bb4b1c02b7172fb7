#include "storage/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "storage/safetensors_sax.h"

namespace stoker::storage {
namespace {

constexpr std::array<StoredTypeInfo, 16> kTypes = {{{StoredType::kBool, "BOOL", 1},
                                                    {StoredType::kU8, "U8", 1},
                                                    {StoredType::kI8, "I8", 1},
                                                    {StoredType::kF8E4m3, "F8_E4M3", 1},
                                                    {StoredType::kF8E5m2, "F8_E5M2", 1},
                                                    {StoredType::kF8E8m0, "F8_E8M0", 1},
                                                    {StoredType::kI16, "I16", 2},
                                                    {StoredType::kU16, "U16", 2},
                                                    {StoredType::kF16, "F16", 2},
                                                    {StoredType::kBf16, "BF16", 2},
                                                    {StoredType::kI32, "I32", 4},
                                                    {StoredType::kU32, "U32", 4},
                                                    {StoredType::kF32, "F32", 4},
                                                    {StoredType::kI64, "I64", 8},
                                                    {StoredType::kU64, "U64", 8},
                                                    {StoredType::kF64, "F64", 8}}};

constexpr std::size_t kLengthBytes = 8;

Error corrupt(std::string message) { return Error(ErrorCode::kCorrupt, std::move(message)); }

// One tensor's JSON object, as a typed entry. `data_bytes` is what the file holds after the header.
Result<SafetensorsEntry> check_entry(const RawEntry& raw, std::int64_t data_begin,
                                     std::int64_t data_bytes) {
  if (!raw.has_dtype || !raw.has_shape || !raw.has_offsets) {
    return corrupt(fmt::format("tensor {}: {} is missing", raw.name,
                               !raw.has_dtype   ? "dtype"
                               : !raw.has_shape ? "shape"
                                                : "data_offsets"));
  }
  const std::optional<StoredType> type = stored_type_named(raw.dtype);
  if (!type) {
    return make_error(ErrorCode::kUnsupported, "tensor {}: dtype {} is not known", raw.name,
                      raw.dtype);
  }
  SafetensorsEntry entry;
  entry.name = raw.name;
  entry.type = *type;
  std::uint64_t bytes = static_cast<std::uint64_t>(stored_type_info(*type).bytes);
  bool overflow = false;
  for (const std::uint64_t size : raw.shape) {
    overflow |=
        size > static_cast<std::uint64_t>(INT64_MAX) || __builtin_mul_overflow(bytes, size, &bytes);
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }
  if (overflow)
    return corrupt(
        fmt::format("tensor {}: shape [{}] overflows", raw.name, fmt::join(raw.shape, ", ")));
  CHECK(raw.offsets.size() == 2, "{}", raw.offsets.size());  // the reader saw to it
  const std::uint64_t begin = raw.offsets[0], end = raw.offsets[1];
  if (begin > end) {
    return corrupt(fmt::format("tensor {}: data_offsets [{}] are not a range", raw.name,
                               fmt::join(raw.offsets, ", ")));
  }
  if (end - begin != bytes) {
    return corrupt(fmt::format("tensor {}: {} of shape [{}] take {} bytes, data_offsets give {}",
                               raw.name, raw.dtype, fmt::join(raw.shape, ", "), bytes,
                               end - begin));
  }
  if (end > static_cast<std::uint64_t>(data_bytes)) {
    return corrupt(fmt::format(
        "truncated: tensor {} ends at byte {} of the data, the file holds {}; fetch the file again",
        raw.name, end, data_bytes));
  }
  entry.offset = data_begin + static_cast<std::int64_t>(begin);
  entry.bytes = static_cast<std::int64_t>(bytes);
  return entry;
}

// Neighbours must touch: no byte belongs to two tensors, none to no tensor.
Status check_cover(const SafetensorsHeader& header, std::int64_t file_bytes) {
  std::int64_t end = header.data_begin;
  const SafetensorsEntry* last = nullptr;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.offset < end) {
      return corrupt(fmt::format("tensors {} and {} overlap", last->name, entry.name));
    }
    if (entry.offset > end) {
      return corrupt(fmt::format("{} bytes before tensor {} belong to no tensor",
                                 entry.offset - end, entry.name));
    }
    end = entry.offset + entry.bytes;
    last = &entry;
  }
  if (end != file_bytes) {
    return corrupt(
        fmt::format("{} bytes at the end of the file belong to no tensor", file_bytes - end));
  }
  return {};
}

}  // namespace

const StoredTypeInfo& stored_type_info(StoredType type) {
  return kTypes[static_cast<std::size_t>(type)];
}

std::optional<StoredType> stored_type_named(std::string_view name) {
  for (const StoredTypeInfo& info : kTypes) {
    if (info.name == name) return info.type;
  }
  return std::nullopt;
}

bool is_plain_file_name(std::string_view name) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of("/\\") == std::string_view::npos &&
         std::none_of(name.begin(), name.end(), is_control);
}

Result<std::int64_t> safetensors_data_begin(std::span<const std::byte> start,
                                            std::int64_t file_bytes) {
  if (start.size() < kLengthBytes || file_bytes < std::int64_t{kLengthBytes}) {
    return corrupt(
        fmt::format("truncated: {} bytes do not hold the length of a header; fetch the file again",
                    file_bytes));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(start[i]);
  }
  if (length > static_cast<std::uint64_t>(kMaxSafetensorsHeader)) {
    return corrupt(fmt::format("a header of {} bytes exceeds {}: this is no safetensors file",
                               length, kMaxSafetensorsHeader));
  }
  const std::int64_t data_begin = static_cast<std::int64_t>(kLengthBytes + length);
  if (data_begin > file_bytes) {
    return corrupt(fmt::format(
        "truncated: the header ends at byte {}, the file holds {}; fetch the file again",
        data_begin, file_bytes));
  }
  return data_begin;
}

Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> head,
                                            std::int64_t file_bytes) {
  ASSIGN_OR_RETURN(const std::int64_t data_begin, safetensors_data_begin(head, file_bytes));
  if (std::cmp_less(head.size(), data_begin)) {
    return corrupt(fmt::format("truncated: {} of {} header bytes", head.size(), data_begin));
  }
  const std::string_view json(reinterpret_cast<const char*>(head.data()) + kLengthBytes,
                              static_cast<std::size_t>(data_begin) - kLengthBytes);
  SafetensorsHeader header;
  header.data_begin = data_begin;
  std::vector<RawEntry> raw_entries;
  RETURN_IF_ERROR(parse_header_json(json, raw_entries, header.metadata), "header");
  header.entries.reserve(raw_entries.size());
  for (const RawEntry& raw : raw_entries) {
    ASSIGN_OR_RETURN(SafetensorsEntry entry, check_entry(raw, data_begin, file_bytes - data_begin));
    header.entries.push_back(std::move(entry));
  }
  // Empty tensors share the offset of whoever follows them.
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  RETURN_IF_ERROR(check_cover(header, file_bytes));
  return header;
}

}  // namespace stoker::storage
