#include "cpu/machine_info.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "cpu/memory_limit.h"

namespace stoker {
namespace {

namespace fs = std::filesystem;

std::string trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1));
}

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return trimmed(line);
}

std::int64_t number(std::string_view text) {
  std::int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Value of the first "key : value" line.
std::string field(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (colon != std::string::npos && trimmed(std::string_view(line).substr(0, colon)) == key) {
      return trimmed(std::string_view(line).substr(colon + 1));
    }
  }
  return {};
}

}  // namespace

std::vector<BlockDrive> list_drives(const std::string& sys_block) {
  constexpr std::int64_t kSectorBytes = 512;  // the unit of `size`, whatever the drive's own is
  std::vector<BlockDrive> drives;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(sys_block, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("loop") || name.starts_with("zram") || name.starts_with("ram")) continue;
    BlockDrive drive{.name = name,
                     .model = first_line(entry.path() / "device/model"),
                     .bytes = number(first_line(entry.path() / "size")) * kSectorBytes,
                     .rotational = first_line(entry.path() / "queue/rotational") == "1"};
    if (drive.bytes > 0) drives.push_back(std::move(drive));
  }
  std::sort(drives.begin(), drives.end(),
            [](const BlockDrive& a, const BlockDrive& b) { return a.name < b.name; });
  return drives;
}

MachineInfo MachineInfo::detect(Isa chosen) {
  MachineInfo info;
  info.cpu_model = field("/proc/cpuinfo", "model name");
  info.topology = Topology::detect();
  info.isas = available_isas();
  info.chosen = chosen;
  info.memory_bytes = number(field("/proc/meminfo", "MemTotal")) * 1024;
  info.memory_available_bytes = number(field("/proc/meminfo", "MemAvailable")) * 1024;
  if (const auto left = memory_left_to_process())
    info.memory_available_bytes = std::min(info.memory_available_bytes, *left);
  info.drives = list_drives();
  return info;
}

}  // namespace stoker
