// Memory aligned to a page: for direct I/O, and for payloads that kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/base/error.h"

namespace stoker::storage {

inline constexpr std::int64_t kPage = 4096;

constexpr std::int64_t align_up(std::int64_t bytes, std::int64_t to) {
  return (bytes + to - 1) / to * to;
}

struct FreeBytes {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
using AlignedBytes = std::unique_ptr<std::byte, FreeBytes>;

// At least `bytes`, not initialised; `alignment` is a power of two.
inline Result<AlignedBytes> allocate_aligned(std::int64_t bytes, std::int64_t alignment = kPage) {
  const std::int64_t size = align_up(bytes < 1 ? 1 : bytes, alignment);
  AlignedBytes memory(static_cast<std::byte*>(
      std::aligned_alloc(static_cast<std::size_t>(alignment), static_cast<std::size_t>(size))));
  if (memory == nullptr) {
    return make_error(ErrorCode::kResource, "no memory for {} bytes", bytes);
  }
  return memory;
}

}  // namespace stoker::storage
