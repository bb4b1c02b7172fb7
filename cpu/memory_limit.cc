#include "cpu/memory_limit.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace stoker {
namespace {

namespace fs = std::filesystem;

// How a version names its files.
struct Names {
  const char* limit;
  const char* used;
  const char* reclaimable;  // a line of memory.stat
};
constexpr Names kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                             "total_inactive_file"};
constexpr Names kVersion2 = {"memory.max", "memory.current", "inactive_file"};

// Version 1 says "no limit" with the largest number of whole pages.
constexpr std::int64_t kNoLimit = std::int64_t{1} << 60;

// Empty for "max" and for what cannot be read.
std::optional<std::int64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  std::string text;
  file >> text;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value >= kNoLimit) return std::nullopt;
  return value;
}

std::int64_t statistic(const fs::path& path, std::string_view wanted) {
  std::ifstream file(path);
  std::string key;
  for (std::int64_t value = 0; file >> key >> value;) {
    if (key == wanted) return value;
  }
  return 0;
}

std::optional<std::int64_t> left_in(const fs::path& group, const Names& names) {
  const auto limit = number_in(group / names.limit);
  if (!limit) return std::nullopt;
  const std::int64_t used = number_in(group / names.used).value_or(0) -
                            statistic(group / "memory.stat", names.reclaimable);
  return std::max<std::int64_t>(0, *limit - std::max<std::int64_t>(0, used));
}

}  // namespace

std::optional<std::int64_t> memory_left_to_process(const std::string& membership,
                                                   const std::string& mount) {
  std::optional<std::int64_t> least;
  std::ifstream file(membership);
  // A line is ID:CONTROLLERS:PATH, the controllers of version 2 empty.
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version2 = controllers.empty();
    if (!version2 && controllers != "memory") continue;
    const fs::path root = version2 ? fs::path(mount) : fs::path(mount) / "memory";
    const Names& names = version2 ? kVersion2 : kVersion1;
    // In a container the path may be the host's, and the mount begin at the container's own group.
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    for (;; group = group.parent_path()) {
      const auto left = left_in(root / group, names);
      if (left && (!least || *left < *least)) least = left;
      if (group.empty()) break;
    }
  }
  return least;
}

}  // namespace stoker
