#include "storage/stream_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace stoker::storage {
namespace {

// The kernel moves at most 2 GiB - 4 KiB at once.
constexpr std::size_t kMaxPiece = std::size_t{1} << 30;

}  // namespace

Result<StreamFile> StreamFile::open(const std::filesystem::path& path, int flags, StreamMode mode) {
  bool direct = mode == StreamMode::kDirect;
  Descriptor file = open_file(path, flags | (direct ? O_DIRECT : 0));
  if (!file.is_open() && errno == EINVAL && direct) {  // tmpfs and others
    direct = false;
    file = open_file(path, flags);
  }
  if (!file.is_open()) return system_error(path, "cannot open");
  ASSIGN_OR_RETURN(const std::int64_t size, regular_file_size(file, path));
  return StreamFile(path, std::move(file), direct, size);
}

Result<StreamFile> StreamFile::open_to_read(const std::filesystem::path& path) {
  return open(path, O_RDONLY, StreamMode::kDirect);
}

Result<StreamFile> StreamFile::open_to_write(const std::filesystem::path& path, StreamMode mode) {
  return open(path, O_RDWR | O_CREAT, mode);
}

Status StreamFile::read(std::int64_t offset, std::span<std::byte> dst) const {
  const std::int64_t begin = offset;
  const std::int64_t wanted = std::min<std::int64_t>(std::ssize(dst), size_ - offset);
  while (offset - begin < wanted) {
    const std::span<std::byte> rest = dst.subspan(static_cast<std::size_t>(offset - begin));
    const ssize_t got = ::pread(file_.get(), rest.data(), std::min(rest.size(), kMaxPiece), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error(path_, "cannot read");
    if (got == 0) {
      return make_error(ErrorCode::kIo, "{}: ends at byte {}, it had {} bytes when it was opened",
                        path_.string(), offset, size_);
    }
    offset += got;
  }
  if (!direct_) ::posix_fadvise(file_.get(), begin, wanted, POSIX_FADV_DONTNEED);
  return {};
}

Result<std::span<std::byte>> StreamFile::read_around(std::int64_t offset, std::int64_t bytes,
                                                     std::byte* buffer) const {
  const std::int64_t begin = offset / kPage * kPage;
  const std::int64_t end = align_up(offset + bytes, kPage);
  CHECK(end - begin <= around_bytes(bytes), "{} {}", offset, bytes);
  RETURN_IF_ERROR(read(begin, {buffer, static_cast<std::size_t>(end - begin)}));
  return std::span(buffer + (offset - begin), static_cast<std::size_t>(bytes));
}

Status StreamFile::write(std::int64_t offset, std::span<const std::byte> bytes) const {
  const std::int64_t begin = offset, size = std::ssize(bytes);
  while (!bytes.empty()) {
    const ssize_t done =
        ::pwrite(file_.get(), bytes.data(), std::min(bytes.size(), kMaxPiece), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error(path_, "cannot write");
    offset += done;
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  if (!direct_) {
    ::sync_file_range(
        file_.get(), begin, size,
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    ::posix_fadvise(file_.get(), begin, size, POSIX_FADV_DONTNEED);
  }
  return {};
}

Status StreamFile::resize(std::int64_t size) {
  if (::ftruncate(file_.get(), size) != 0) return system_error(path_, "cannot resize");
  int code = 0;
  do {
    code = size > 0 && ::fallocate(file_.get(), 0, 0, size) != 0 ? errno : 0;
  } while (code == EINTR);
  if (code != 0 && code != EOPNOTSUPP) return system_error(path_, "cannot reserve space", code);
  size_ = size;
  return {};
}

Status StreamFile::sync() const {
  if (::fdatasync(file_.get()) != 0) return system_error(path_, "cannot sync");
  return {};
}

}  // namespace stoker::storage
