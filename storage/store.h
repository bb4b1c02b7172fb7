// Store: a packed model, as `stoker pack` makes it (manifest.h, data_file.h). Every byte that is
// read from it is held against a checksum before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "storage/extent.h"
#include "storage/manifest.h"
#include "storage/model_source.h"

namespace stoker::storage {

// Immutable after open(); thread-safe.
class Store final : public ModelSource, public ExtentSource {
 public:
  using ModelSource::read;

  // Opens the store in `dir`. With `expert_dirs` its expert files are looked for there instead; one
  // that is found in several of them is a mirror, a directory or file that is named twice counts
  // once. Reads manifest, headers and checksum tables, and checks them against each other and
  // against `config`, which is copied. A copy of an expert file that is damaged is left out and
  // mentioned in notices(), as long as a good one is there.
  static Result<std::unique_ptr<Store>> open(
      const std::filesystem::path& dir, const ModelConfig& config,
      std::span<const std::filesystem::path> expert_dirs = {});
  // Whether `dir` holds a store rather than a checkpoint.
  static bool is_store(const std::filesystem::path& dir);

  // ExpertSource.
  int num_replicas(ExpertId id) const override;
  Status land(ExpertId id, int block, int replica, std::byte* bytes) const override;
  // Takes a bad block from another copy, if there is one.
  Status read(ExpertId id, std::byte* dst) const override;

  // ExtentSource.
  const std::vector<ExtentFile>& extent_files() const override { return extent_files_; }
  int extents(ExpertId id, int block, int replica, std::span<Extent> out) const override;

  const Manifest& manifest() const { return manifest_; }

 private:
  friend class StoreOpener;
  explicit Store(ModelConfig config) : ModelSource(std::move(config)) {}

  // Where a packed expert lies.
  struct Place {
    int file = -1;            // index into expert_files_
    std::int64_t offset = 0;  // in the file
    std::int64_t first_checksum = 0;
  };
  struct ExpertFile {
    std::vector<int> replicas;             // indices into extent_files_ and handles_
    std::vector<std::uint64_t> checksums;  // in file order
  };
  const Place& place(ExpertId id) const;

  Manifest manifest_;
  std::vector<ExpertFile> expert_files_;
  std::vector<ExtentFile> extent_files_;
  std::vector<ReadFile> handles_;           // of extent_files_
  std::vector<std::vector<Place>> places_;  // by layer, by expert
};

}  // namespace stoker::storage
