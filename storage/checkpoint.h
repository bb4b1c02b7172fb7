// Checkpoint: a Hugging Face directory of safetensors files, checked against its config when
// opened, read with pread into memory of its own (never mapped: a drive that goes away is an error,
// not a signal). Published shards carry no checksums; what can be checked is: sizes, shapes,
// dtypes, and at each read that every value is finite.
#pragma once

#include <filesystem>
#include <memory>
#include <utility>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "storage/model_source.h"

namespace stoker::storage {

// Immutable after open(); thread-safe.
class Checkpoint final : public ModelSource {
 public:
  using ModelSource::read;

  // Opens every shard and checks the whole tensor table against names, shapes and dtypes. Errors
  // name file and tensor and say what to do. Copies `config`.
  static Result<std::unique_ptr<Checkpoint>> open(const std::filesystem::path& dir,
                                                  const ModelConfig& config);

  // ExpertSource: published experts, re-laid in block form.
  Status land(ExpertId id, int block, int replica, std::byte* bytes) const override;
  Status read(ExpertId id, std::byte* dst) const override;

 private:
  friend class CheckpointOpener;
  explicit Checkpoint(ModelConfig config) : ModelSource(std::move(config)) {}
};

}  // namespace stoker::storage
