// A tensor of a published checkpoint: where its bytes lie, and whether they are numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage/safetensors.h"

namespace stoker::storage {

struct StoredTensor {
  int file = 0;  // index into the checkpoint's files
  StoredType type = StoredType::kU8;
  std::int64_t rows = 1, cols = 0;  // a vector: rows 1
  std::int64_t offset = 0, bytes = 0;
  int rank = 0;
  bool ignored = false;  // no part of the model: said in the checkpoint's notices

  std::int64_t row_bytes() const { return bytes / rows; }
};

// Index of the first infinity or NaN among `count` values, aligned to their size; -1: there is
// none.
std::int64_t first_not_finite(StoredType type, const std::byte* values, std::int64_t count);

}  // namespace stoker::storage
