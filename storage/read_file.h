// A regular file open for reading at any place, from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <utility>

#include "core/base/descriptor.h"
#include "core/base/error.h"

namespace stoker::storage {

class ReadFile {
 public:
  static Result<ReadFile> open(const std::filesystem::path& path);
  // Past the page cache: places, sizes and addresses of reads are multiples of 4 KiB. kUnsupported:
  // the file system refuses that.
  static Result<ReadFile> open_direct(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  int fd() const { return file_.get(); }
  std::int64_t size() const { return size_; }  // when it was opened

  // Fills `dst` from byte `offset` on, or fails; errors name the file.
  Status read(std::int64_t offset, std::span<std::byte> dst) const;

 private:
  static Result<ReadFile> open(const std::filesystem::path& path, int flags);
  ReadFile(std::filesystem::path path, Descriptor file, std::int64_t size)
      : path_(std::move(path)), file_(std::move(file)), size_(size) {}

  std::filesystem::path path_;
  Descriptor file_;
  std::int64_t size_ = 0;
};

}  // namespace stoker::storage
