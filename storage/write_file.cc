#include "storage/write_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace stoker::storage {
Status sync_parent_directory(const std::filesystem::path& file) {
  const std::filesystem::path dir = file.has_parent_path() ? file.parent_path() : ".";
  const Descriptor directory = open_file(dir, O_RDONLY | O_DIRECTORY);
  if (!directory.is_open()) return system_error(dir, "cannot open");
  // Some file systems cannot sync a directory; they have nothing to lose by it.
  if (::fsync(directory.get()) != 0 && errno != EINVAL) return system_error(dir, "cannot sync");
  return {};
}

Result<AtomicFile> AtomicFile::create(const std::filesystem::path& path) {
  std::filesystem::path partial = path;
  partial += ".partial";
  Descriptor file = open_file(partial, O_WRONLY | O_CREAT | O_TRUNC);
  if (!file.is_open()) return system_error(partial, "cannot create");
  return AtomicFile(path, std::move(partial), std::move(file));
}

AtomicFile::~AtomicFile() {
  if (file_.is_open()) ::unlink(partial_.c_str());
}

Status AtomicFile::write(std::int64_t offset, std::span<const std::byte> bytes) {
  CHECK(file_.is_open(), "{} is committed", path_.string());
  while (!bytes.empty()) {
    const std::size_t chunk = std::min(bytes.size(), std::size_t{1} << 30);
    const ssize_t done = ::pwrite(file_.get(), bytes.data(), chunk, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error(path_, "cannot write");
    offset += done;
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  return {};
}

Status AtomicFile::commit() {
  CHECK(file_.is_open(), "{} is committed", path_.string());
  if (::fsync(file_.get()) != 0) return system_error(path_, "cannot sync");
  if (::rename(partial_.c_str(), path_.c_str()) != 0) return system_error(path_, "cannot rename");
  if (file_.close() != 0) return system_error(path_, "cannot close");
  return sync_parent_directory(path_);
}

Status write_text_file(const std::filesystem::path& path, std::string_view text) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(0, std::as_bytes(std::span(text))));
  return file.commit();
}

}  // namespace stoker::storage
