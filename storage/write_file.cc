#include "storage/write_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace stoker::storage {
namespace {

Error system_error(const std::filesystem::path& path, const char* doing) {
  return make_error(ErrorCode::kIo, "{}: {}: {}", path.string(), doing,
                    std::generic_category().message(errno));
}

}  // namespace

Status sync_parent_directory(const std::filesystem::path& file) {
  const std::filesystem::path dir = file.has_parent_path() ? file.parent_path() : ".";
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return system_error(dir, "cannot open");
  const int failed = ::fsync(fd);
  const int code = errno;
  ::close(fd);
  errno = code;
  // Some file systems cannot sync a directory; they have nothing to lose by it.
  if (failed != 0 && code != EINVAL) return system_error(dir, "cannot sync");
  return {};
}

Result<AtomicFile> AtomicFile::create(const std::filesystem::path& path) {
  std::filesystem::path partial = path;
  partial += ".partial";
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return system_error(partial, "cannot create");
  return AtomicFile(path, std::move(partial), fd);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      partial_(std::move(other.partial_)),
      fd_(std::exchange(other.fd_, -1)) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

Status AtomicFile::write(std::int64_t offset, std::span<const std::byte> bytes) {
  CHECK(fd_ >= 0, "{} is committed", path_.string());
  while (!bytes.empty()) {
    const std::size_t chunk = std::min(bytes.size(), std::size_t{1} << 30);
    const ssize_t done = ::pwrite(fd_, bytes.data(), chunk, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error(path_, "cannot write");
    offset += done;
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  return {};
}

Status AtomicFile::commit() {
  CHECK(fd_ >= 0, "{} is committed", path_.string());
  if (::fsync(fd_) != 0) return system_error(path_, "cannot sync");
  if (::rename(partial_.c_str(), path_.c_str()) != 0) return system_error(path_, "cannot rename");
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0) return system_error(path_, "cannot close");
  return sync_parent_directory(path_);
}

Status write_text_file(const std::filesystem::path& path, std::string_view text) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(0, std::as_bytes(std::span(text))));
  return file.commit();
}

}  // namespace stoker::storage
