// Checkpoint: a Hugging Face directory of safetensors files, checked against its config when
// opened, read with pread into memory of its own (never mapped: a drive that goes away is an error,
// not a signal). Published shards carry no checksums; what can be checked is: sizes, shapes,
// dtypes, and at each read that every value is finite.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_source.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "storage/expert_shards.h"
#include "storage/extent.h"
#include "storage/read_file.h"
#include "storage/stored_tensor.h"

namespace stoker::storage {

// Immutable after open(); thread-safe.
class Checkpoint final : public WeightSource, public ExpertSource, public ExtentSource {
 public:
  // Opens every shard and checks the whole tensor table against names, shapes and dtypes. Errors
  // name file and tensor and say what to do. Copies `config`.
  static Result<std::unique_ptr<Checkpoint>> open(const std::filesystem::path& dir,
                                                  const ModelConfig& config);

  // WeightSource.
  bool has(std::string_view name) const override;
  Result<HostWeight> read(std::string_view name, std::int64_t rows,
                          std::int64_t cols) const override;
  std::int64_t dense_bytes() const override { return dense_bytes_; }
  std::vector<std::string> names() const override;

  // ExpertSource, main and stored draft layers: published experts, re-laid in block form by land().
  // Blocks lie in their slot as ExpertShards says, a little further apart than in a store.
  int num_blocks(int layer) const override;
  std::int64_t expert_bytes(int layer) const override;
  std::int64_t block_offset(int layer, int block) const override;
  std::int64_t block_bytes(int layer, int block) const override;
  ExpertPart part(int layer, int block, const std::byte* block_bytes,
                  DeviceId device) const override;
  Status land(ExpertId id, int block, int replica, std::byte* bytes) const override;
  Status read(ExpertId id, std::byte* dst) const override;

  // ExtentSource.
  const std::vector<ExtentFile>& extent_files() const override { return extent_files_; }
  int extents(ExpertId id, int block, int replica, std::span<Extent> out) const override;

  // The stored tensor `name`, or null. Scales are tensors of their own.
  const StoredTensor* find(std::string_view name) const;
  const std::vector<ReadFile>& files() const { return files_; }
  bool has_draft_layer(int layer) const;
  // How the experts of a MoE layer are stored.
  QuantSpec expert_spec(int layer) const;

  // Counted from the shard headers, scales included; ignored tensors do not count.
  const CategoryBytes& category_bytes() const { return category_bytes_; }
  std::int64_t total_bytes() const;
  int num_tensors() const { return static_cast<int>(tensors_.size()); }
  // What is unusual and harmless, one sentence each, for the log.
  const std::vector<std::string>& notices() const { return notices_; }

 private:
  friend class CheckpointOpener;
  explicit Checkpoint(ModelConfig config) : config_(std::move(config)) {}

  const std::filesystem::path& path_of(const StoredTensor& tensor) const {
    return files_[static_cast<std::size_t>(tensor.file)].path();
  }
  const ExpertShards& shards(int layer) const;
  Error not_finite(std::string_view name, const StoredTensor& tensor, std::int64_t row,
                   std::int64_t col) const;
  // Bytes that load() writes for a weight: payload, scales, each aligned.
  std::int64_t loaded_bytes(std::string_view name, const StoredTensor& tensor) const;
  // Reads payload and scales of `name` to `dst` and checks every value.
  Result<QuantView> load(std::string_view name, const StoredTensor& tensor, std::byte* dst) const;

  ModelConfig config_;
  std::vector<ReadFile> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<int, ExpertShards> experts_;  // by layer
  std::vector<ExtentFile> extent_files_;
  CategoryBytes category_bytes_{};
  std::int64_t dense_bytes_ = 0;
  std::vector<std::string> notices_;
};

}  // namespace stoker::storage
