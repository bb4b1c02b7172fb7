// Host memory of the CPU backend: zeroed, aligned for vectors, on huge pages where it is large.
#pragma once

#include <cstddef>
#include <utility>

#include "core/base/error.h"

namespace stoker::cpu {

// Owns a stretch of memory; only moves.
class Memory {
 public:
  Memory() = default;
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory();

  // Zeroed and aligned to 64 bytes, from 2 MiB on to a huge page.
  static Result<Memory> create(std::size_t bytes);

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Scratch that only grows; growing loses what it held. Doubles, so that a growing context asks for
// memory a few times and not at every token. Running out of memory here ends the program.
class Scratch {
 public:
  void* reserve(std::size_t bytes);
  template <typename T>
  T* reserve_array(std::size_t count) {
    return static_cast<T*>(reserve(count * sizeof(T)));
  }

 private:
  Memory memory_;
};

}  // namespace stoker::cpu
