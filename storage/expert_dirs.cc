#include "storage/expert_dirs.h"

#include <sys/stat.h>

#include <optional>
#include <set>
#include <utility>

namespace stoker::storage {
namespace {

// Which file or directory a path leads to, by whatever name.
using FileId = std::pair<dev_t, ino_t>;
std::optional<FileId> file_id(const std::filesystem::path& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return FileId(info.st_dev, info.st_ino);
}

}  // namespace

Result<std::vector<std::filesystem::path>> expert_directories(
    const std::filesystem::path& dir, std::span<const std::filesystem::path> named) {
  if (named.empty()) return std::vector{dir};
  std::vector<std::filesystem::path> dirs;
  std::set<FileId> seen;
  for (const std::filesystem::path& path : named) {
    std::error_code ignored;
    const std::optional<FileId> id = file_id(path);
    if (!id || !std::filesystem::is_directory(path, ignored)) {
      return make_error(ErrorCode::kNotFound,
                        "{}: is not a directory; --store takes directories with expert files",
                        path.string());
    }
    if (seen.insert(*id).second) dirs.push_back(path);
  }
  return dirs;
}

std::vector<std::filesystem::path> find_copies(std::span<const std::filesystem::path> dirs,
                                               std::string_view name) {
  std::vector<std::filesystem::path> copies;
  std::set<FileId> seen;
  for (const std::filesystem::path& dir : dirs) {
    const std::filesystem::path path = dir / name;
    const std::optional<FileId> id = file_id(path);
    if (id && seen.insert(*id).second) copies.push_back(path);
  }
  return copies;
}

}  // namespace stoker::storage
