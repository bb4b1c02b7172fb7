// Memory aligned to pages, as direct I/O wants it, filled with a pattern that no test data is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "core/base/check.h"

namespace stoker::test {

class AlignedMemory {
 public:
  explicit AlignedMemory(std::int64_t bytes)
      : size_(static_cast<std::size_t>((bytes + 4095) / 4096 * 4096)),
        bytes_(static_cast<std::byte*>(std::aligned_alloc(4096, size_))) {
    CHECK(bytes_ != nullptr);
    std::memset(bytes_.get(), 0xa5, size_);
  }
  std::byte* data() const { return bytes_.get(); }
  std::span<std::byte> bytes() const { return {bytes_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  std::size_t size_;
  std::unique_ptr<std::byte, Free> bytes_;
};

}  // namespace stoker::test
