#include "storage/stream_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace stoker::storage {
namespace {

Error system_error(const std::filesystem::path& path, const char* doing, int code = errno) {
  const ErrorCode kind = code == ENOENT                                      ? ErrorCode::kNotFound
                         : code == ENOSPC || code == EDQUOT || code == EFBIG ? ErrorCode::kResource
                                                                             : ErrorCode::kIo;
  return make_error(kind, "{}: {}: {}", path.string(), doing,
                    std::generic_category().message(code));
}

// The kernel moves at most 2 GiB - 4 KiB at once.
constexpr std::size_t kMaxPiece = std::size_t{1} << 30;

}  // namespace

Result<StreamFile> StreamFile::open(const std::filesystem::path& path, int flags, StreamMode mode) {
  // Non-blocking, so that a FIFO in the place of a file is an error and not a wait.
  flags |= O_CLOEXEC | O_NONBLOCK;
  bool direct = mode == StreamMode::kDirect;
  int fd = ::open(path.c_str(), flags | (direct ? O_DIRECT : 0), 0644);
  if (fd < 0 && errno == EINVAL && direct) {  // tmpfs and others
    direct = false;
    fd = ::open(path.c_str(), flags, 0644);
  }
  if (fd < 0) return system_error(path, "cannot open");
  StreamFile file(path, fd, direct);
  struct stat info;
  if (::fstat(fd, &info) != 0) return system_error(path, "cannot stat");
  if (!S_ISREG(info.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument, "{}: is not a regular file", path.string());
  }
  file.size_ = info.st_size;
  return file;
}

Result<StreamFile> StreamFile::open_to_read(const std::filesystem::path& path) {
  return open(path, O_RDONLY, StreamMode::kDirect);
}

Result<StreamFile> StreamFile::open_to_write(const std::filesystem::path& path, StreamMode mode) {
  return open(path, O_RDWR | O_CREAT, mode);
}

StreamFile::StreamFile(StreamFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      direct_(other.direct_),
      size_(other.size_) {}

StreamFile& StreamFile::operator=(StreamFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(size_, other.size_);
  return *this;
}

StreamFile::~StreamFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status StreamFile::read(std::int64_t offset, std::span<std::byte> dst) const {
  const std::int64_t begin = offset;
  const std::int64_t wanted = std::min<std::int64_t>(std::ssize(dst), size_ - offset);
  while (offset - begin < wanted) {
    const std::span<std::byte> rest = dst.subspan(static_cast<std::size_t>(offset - begin));
    const ssize_t got = ::pread(fd_, rest.data(), std::min(rest.size(), kMaxPiece), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error(path_, "cannot read");
    if (got == 0) {
      return make_error(ErrorCode::kIo, "{}: ends at byte {}, it had {} bytes when it was opened",
                        path_.string(), offset, size_);
    }
    offset += got;
  }
  if (!direct_) ::posix_fadvise(fd_, begin, wanted, POSIX_FADV_DONTNEED);
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
    const ssize_t done = ::pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxPiece), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error(path_, "cannot write");
    offset += done;
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  if (!direct_) {
    ::sync_file_range(
        fd_, begin, size,
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    ::posix_fadvise(fd_, begin, size, POSIX_FADV_DONTNEED);
  }
  return {};
}

Status StreamFile::resize(std::int64_t size) {
  if (::ftruncate(fd_, size) != 0) return system_error(path_, "cannot resize");
  int code = 0;
  do {
    code = size > 0 && ::fallocate(fd_, 0, 0, size) != 0 ? errno : 0;
  } while (code == EINTR);
  if (code != 0 && code != EOPNOTSUPP) return system_error(path_, "cannot reserve space", code);
  size_ = size;
  return {};
}

Status StreamFile::sync() const {
  if (::fdatasync(fd_) != 0) return system_error(path_, "cannot sync");
  return {};
}

}  // namespace stoker::storage
