// A tensor in a safetensors file: where its bytes lie, and whether they are numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "storage/safetensors.h"

namespace stoker::storage {

struct StoredTensor {
  int file = 0;  // index into the files of who opened them
  StoredType type = StoredType::kU8;
  std::int64_t rows = 1, cols = 0;  // a vector: rows 1
  std::int64_t offset = 0, bytes = 0;
  int rank = 0;
  bool ignored = false;  // no part of the model: said in the notices of who opened the files
  // XXH3-64 of its bytes, where the file gives one; held against what is read.
  std::optional<std::uint64_t> checksum = std::nullopt;

  std::int64_t row_bytes() const { return bytes / rows; }
};

// Index of the first infinity or NaN among `count` values, aligned to their size; -1: there is
// none.
std::int64_t first_not_finite(StoredType type, const std::byte* values, std::int64_t count);

}  // namespace stoker::storage
