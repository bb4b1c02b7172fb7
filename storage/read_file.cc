#include "storage/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace stoker::storage {
namespace {

Error system_error(const std::filesystem::path& path, const char* doing) {
  const int code = errno;
  return make_error(code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, "{}: {}: {}",
                    path.string(), doing, std::generic_category().message(code));
}

Error refuses_direct(const std::filesystem::path& path) {
  return make_error(ErrorCode::kUnsupported, "{}: its file system refuses direct I/O",
                    path.string());
}

}  // namespace

Result<ReadFile> ReadFile::open(const std::filesystem::path& path) { return open(path, 0); }

Result<ReadFile> ReadFile::open_direct(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(ReadFile file, open(path, O_DIRECT));
  // Some file systems refuse the first read instead.
  alignas(4096) std::byte page[4096];
  while (::pread(file.fd_, page, sizeof(page), 0) < 0) {
    if (errno == EINVAL) return refuses_direct(path);
    if (errno != EINTR) return system_error(path, "cannot read");
  }
  return file;
}

Result<ReadFile> ReadFile::open(const std::filesystem::path& path, int flags) {
  // Non-blocking, so that a FIFO in the place of a file is an error and not a wait.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
  if (fd < 0 && errno == EINVAL && (flags & O_DIRECT) != 0) return refuses_direct(path);
  if (fd < 0) return system_error(path, "cannot open");
  ReadFile file(path, fd, 0);
  struct stat info;
  if (::fstat(fd, &info) != 0) return system_error(path, "cannot stat");
  if (!S_ISREG(info.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument, "{}: is not a regular file", path.string());
  }
  file.size_ = info.st_size;
  return file;
}

ReadFile::ReadFile(ReadFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

ReadFile& ReadFile::operator=(ReadFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

ReadFile::~ReadFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status ReadFile::read(std::int64_t offset, std::span<std::byte> dst) const {
  while (!dst.empty()) {
    // The kernel moves at most 2 GiB - 4 KiB at once.
    const std::size_t chunk = std::min(dst.size(), std::size_t{1} << 30);
    const ssize_t got = ::pread(fd_, dst.data(), chunk, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error(path_, "cannot read");
    if (got == 0) {
      return make_error(ErrorCode::kIo,
                        "{}: ends at byte {}, {} more were there when it was opened",
                        path_.string(), offset, dst.size());
    }
    offset += got;
    dst = dst.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

}  // namespace stoker::storage
