#include "storage/read_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace stoker::storage {
namespace {

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
  while (::pread(file.fd(), page, sizeof(page), 0) < 0) {
    if (errno == EINVAL) return refuses_direct(path);
    if (errno != EINTR) return system_error(path, "cannot read");
  }
  return file;
}

Result<ReadFile> ReadFile::open(const std::filesystem::path& path, int flags) {
  Descriptor file = open_file(path, O_RDONLY | flags);
  if (!file.is_open() && errno == EINVAL && (flags & O_DIRECT) != 0) return refuses_direct(path);
  if (!file.is_open()) return system_error(path, "cannot open");
  ASSIGN_OR_RETURN(const std::int64_t size, regular_file_size(file, path));
  return ReadFile(path, std::move(file), size);
}

Status ReadFile::read(std::int64_t offset, std::span<std::byte> dst) const {
  while (!dst.empty()) {
    // The kernel moves at most 2 GiB - 4 KiB at once.
    const std::size_t chunk = std::min(dst.size(), std::size_t{1} << 30);
    const ssize_t got = ::pread(fd(), dst.data(), chunk, offset);
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
