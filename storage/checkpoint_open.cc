// Opening a checkpoint: find the shards, read their headers, hold everything against the config.

#include <fmt/format.h>

#include <unordered_set>

#include "core/base/file.h"
#include "storage/checkpoint.h"
#include "storage/tensor_check.h"

namespace stoker::storage {
namespace {

constexpr std::size_t kMaxIndexBytes = 256 << 20;
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";

}  // namespace

class CheckpointOpener {
 public:
  CheckpointOpener(std::filesystem::path dir, const ModelConfig& config)
      : dir_(std::move(dir)), checkpoint_(new Checkpoint(config)) {}

  Result<std::unique_ptr<Checkpoint>> run() {
    RETURN_IF_ERROR(find_shards());
    TensorCheck check(dir_, checkpoint_->config_, TensorScope::kAll, checkpoint_->tensors_);
    RETURN_IF_ERROR(check.run());
    checkpoint_->category_bytes_ = check.category_bytes();
    checkpoint_->dense_bytes_ = check.dense_bytes();
    checkpoint_->notices_.insert(checkpoint_->notices_.end(), check.notices().begin(),
                                 check.notices().end());
    for (const TensorSpec& spec : check.found()) {
      if (spec.expert >= 0) RETURN_IF_ERROR(lay_out(spec));
    }
    return std::move(checkpoint_);
  }

 private:
  Status find_shards();
  Status open_shard(const std::string& file, const std::string& reason);
  Status match_index(const std::vector<ShardedName>& index);
  Status lay_out(const TensorSpec& spec);

  std::string where(std::string_view name) const {
    return checkpoint_->tensors_.path_of(*checkpoint_->find(name)).string();
  }

  std::filesystem::path dir_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

Result<std::unique_ptr<Checkpoint>> Checkpoint::open(const std::filesystem::path& dir,
                                                     const ModelConfig& config) {
  return CheckpointOpener(dir, config).run();
}

Status CheckpointOpener::find_shards() {
  std::error_code ignored;
  if (!std::filesystem::is_directory(dir_, ignored)) {
    return make_error(ErrorCode::kNotFound, "{}: is not a directory", dir_.string());
  }
  if (!std::filesystem::exists(dir_ / kIndexFile, ignored)) {
    if (!std::filesystem::exists(dir_ / kSingleFile, ignored)) {
      return make_error(ErrorCode::kNotFound,
                        "{}: has neither {} nor {}; a checkpoint directory holds one of them",
                        dir_.string(), kIndexFile, kSingleFile);
    }
    return open_shard(kSingleFile, "");
  }
  ASSIGN_OR_RETURN(const std::string text, read_small_file(dir_ / kIndexFile, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const std::vector<ShardedName> index, parse_safetensors_index(text), "{}",
                   (dir_ / kIndexFile).string());
  std::unordered_set<std::string> opened;
  for (const ShardedName& name : index) {
    if (opened.insert(name.file).second) RETURN_IF_ERROR(open_shard(name.file, name.tensor));
  }
  return match_index(index);
}

Status CheckpointOpener::open_shard(const std::string& file, const std::string& reason) {
  Result<ReadFile> opened = ReadFile::open(dir_ / file);
  if (!opened.ok()) {
    Error error = std::move(opened).error();
    if (error.code() != ErrorCode::kNotFound) return error;
    return make_error(
        ErrorCode::kNotFound,
        "{}; {} lists it for tensor {}: fetch the file, or the whole checkpoint again",
        error.message(), kIndexFile, reason);
  }
  return checkpoint_->tensors_.add(std::move(opened).value());
}

Status CheckpointOpener::match_index(const std::vector<ShardedName>& index) {
  std::unordered_set<std::string_view> listed;
  for (const ShardedName& name : index) {
    const StoredTensor* tensor = checkpoint_->find(name.tensor);
    listed.insert(name.tensor);
    if (tensor != nullptr && checkpoint_->tensors_.path_of(*tensor).filename() == name.file)
      continue;
    return make_error(ErrorCode::kCorrupt,
                      "{}: lists tensor {} in {}, which does not hold it{}; index and shards are "
                      "of different checkpoints: fetch them again",
                      (dir_ / kIndexFile).string(), name.tensor, name.file,
                      tensor == nullptr ? "" : " (" + where(name.tensor) + " does)");
  }
  int unlisted = 0;
  std::string first;
  for (const auto& [name, tensor] : checkpoint_->tensors_.all()) {
    if (listed.contains(name)) continue;
    checkpoint_->tensors_.ignore(name);
    if (unlisted++ == 0) first = name;
  }
  if (unlisted > 0) {
    checkpoint_->notices_.push_back(
        fmt::format("{} tensors are stored but not listed in {}, the first {}: ignored", unlisted,
                    kIndexFile, first));
  }
  return {};
}

// Kernels want one format per layer.
Status CheckpointOpener::lay_out(const TensorSpec& spec) {
  QuantSpec quant;
  quant.format = quant_format_of(checkpoint_->find(spec.name)->type);
  auto& layer = checkpoint_->experts_[static_cast<std::size_t>(spec.layer)];
  if (!layer) {
    const ModelConfig& config = checkpoint_->config_;
    layer = {quant, quant::ExpertBlocks(config.hidden_size, config.moe_intermediate_size, quant)};
  } else if (layer->spec != quant) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: tensor {} is {}, other experts of its layer are {}; all must be alike",
                      where(spec.name), spec.name, quant_format_name(quant.format),
                      quant_format_name(layer->spec.format));
  }
  return {};
}

}  // namespace stoker::storage
