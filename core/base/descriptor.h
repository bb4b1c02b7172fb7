// Open files of the operating system, and its errors, which name the path.
#pragma once

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/base/error.h"

namespace stoker {

// Owns a file descriptor, or none. One thread at a time.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor();

  bool is_open() const { return fd_ >= 0; }
  int get() const { return fd_; }
  // What close() says.
  int close();

 private:
  int fd_ = -1;
};

// "PATH: DOING: No such file or directory". kNotFound for that, kResource for a full drive, else
// kIo.
Error system_error(const std::filesystem::path& path, std::string_view doing, int code = errno);

// open() with `flags`; closed by exec, and a FIFO in the place of a file is no wait. errno says why
// it is not open.
Descriptor open_file(const std::filesystem::path& path, int flags);

// Bytes of an open file, which must be a regular one.
Result<std::int64_t> regular_file_size(const Descriptor& file, const std::filesystem::path& path);

}  // namespace stoker
