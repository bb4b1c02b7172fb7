// The safetensors header: an 8-byte little-endian length N, N bytes of JSON, then the tensors'
// bytes.
//
//   | N | {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...} | data ... |
//
// Parsing trusts nothing: what comes out lies inside the file, does not overlap, leaves no holes,
// and its sizes agree with its shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/tensor/dtype.h"

namespace stoker::storage {

// Everything that safetensors files hold; core's DType is what we compute with.
enum class StoredType : std::uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E4m3,
  kF8E5m2,
  kF8E8m0,
  kI16,
  kU16,
  kF16,
  kBf16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64
};

struct StoredTypeInfo {
  StoredType type;
  std::string_view name;
  int bytes;
};
const StoredTypeInfo& stored_type_info(StoredType type);
std::optional<StoredType> stored_type_named(std::string_view name);

struct SafetensorsEntry {
  std::string name;
  StoredType type = StoredType::kU8;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // of its first byte in the file
  std::int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;        // by offset
  std::map<std::string, std::string> metadata;  // __metadata__
  std::int64_t data_begin = 0;                  // offset of the data section in the file
};

inline constexpr std::int64_t kMaxSafetensorsHeader = 100'000'000;

// Bytes from the start of the file to the end of its header, given its first 8 bytes (or fewer, if
// the file is shorter).
Result<std::int64_t> safetensors_data_begin(std::span<const std::byte> start,
                                            std::int64_t file_bytes);

// `head`: the first safetensors_data_begin() bytes of a file of `file_bytes`.
Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> head,
                                            std::int64_t file_bytes);

// Whether `name` names a file of a directory and nothing outside it.
bool is_plain_file_name(std::string_view name);

// model.safetensors.index.json: which file holds which tensor. Names in the order of the file, each
// once; file names are plain names, without a way out of their directory.
struct ShardedName {
  std::string tensor;
  std::string file;
};
Result<std::vector<ShardedName>> parse_safetensors_index(std::string_view json);

}  // namespace stoker::storage
