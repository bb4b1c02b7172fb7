// StreamFile: a file that is read or written once, in large pieces, past the page cache where the
// file system allows it; where it does not, what went through the cache is pushed out again, so
// that packing a large model leaves everything else in memory alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <utility>

#include "core/base/descriptor.h"
#include "core/base/error.h"
#include "storage/aligned_bytes.h"

namespace stoker::storage {

// kCached: through the page cache, for pieces of any place and size. kDirect: past it, if possible;
// offsets, sizes and addresses of pieces are multiples of kPage.
enum class StreamMode : std::uint8_t { kDirect, kCached };

// Thread-safe for pieces that do not overlap. Errors name the file; kResource is a full drive.
class StreamFile {
 public:
  static Result<StreamFile> open_to_read(const std::filesystem::path& path);
  // Creates the file if it is not there; what is in it stays.
  static Result<StreamFile> open_to_write(const std::filesystem::path& path, StreamMode mode);

  const std::filesystem::path& path() const { return path_; }
  std::int64_t size() const { return size_; }  // when it was opened, or resized
  bool direct() const { return direct_; }

  // Fills `dst`, except what lies past the end of the file.
  Status read(std::int64_t offset, std::span<std::byte> dst) const;
  Status write(std::int64_t offset, std::span<const std::byte> bytes) const;
  // Gives the file its final size and, where the file system can, the space for it.
  Status resize(std::int64_t size);
  // Reads any stretch that lies in the file, with what lies around it. The result is a part of
  // `buffer`, which is aligned to a page and takes around_bytes(bytes).
  Result<std::span<std::byte>> read_around(std::int64_t offset, std::int64_t bytes,
                                           std::byte* buffer) const;
  static constexpr std::int64_t around_bytes(std::int64_t bytes) {
    return align_up(bytes, kPage) + kPage;
  }
  // What has been written is on the drive.
  Status sync() const;

 private:
  StreamFile(std::filesystem::path path, Descriptor file, bool direct, std::int64_t size)
      : path_(std::move(path)), file_(std::move(file)), direct_(direct), size_(size) {}
  static Result<StreamFile> open(const std::filesystem::path& path, int flags, StreamMode mode);

  std::filesystem::path path_;
  Descriptor file_;
  bool direct_ = false;
  std::int64_t size_ = 0;
};

}  // namespace stoker::storage
