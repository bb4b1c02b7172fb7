// ExtentFiles: files of random bytes as an ExtentSource: every expert of layer 0 is some blocks of
// one size, in one or several stretches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "storage/extent.h"

namespace stoker::test {

struct ExtentFilesOptions {
  // A copy of all experts is laid into each directory, one file each.
  std::vector<std::filesystem::path> dirs;
  int num_experts = 8;
  int num_blocks = 4;
  std::int64_t block_bytes = 64 << 10;
  int stretches = 1;     // per block, in reverse order of the file
  std::int64_t cut = 0;  // bytes that the file lacks at its end
  std::uint64_t seed = 1;
};

// Thread-safe once made.
class ExtentFiles final : public storage::ExtentSource {
 public:
  explicit ExtentFiles(const ExtentFilesOptions& options);

  const std::vector<storage::ExtentFile>& extent_files() const override { return files_; }
  int extents(ExpertId id, int block, int replica, std::span<storage::Extent> out) const override;

  std::int64_t block_bytes() const { return options_.block_bytes; }
  int num_blocks() const { return options_.num_experts * options_.num_blocks; }
  // Block i of all, counted through the experts.
  ExpertId id_of(int i) const { return {0, i / options_.num_blocks}; }
  int block_of(int i) const { return i % options_.num_blocks; }
  // Whether `bytes` is what a read of block i brings; what the file lacks is not looked at.
  bool holds(int i, std::span<const std::byte> bytes) const;

 private:
  ExtentFilesOptions options_;
  std::vector<storage::ExtentFile> files_;
  std::vector<std::byte> content_;
};

}  // namespace stoker::test
