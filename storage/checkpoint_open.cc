// Opening a checkpoint: find the shards, read their headers, hold everything against the config.

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "core/base/file.h"
#include "storage/checkpoint.h"

namespace stoker::storage {
namespace {

constexpr std::size_t kMaxIndexBytes = 256 << 20;
constexpr std::int64_t kBlock = 128;  // rows and columns that share an FP8 scale
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";

bool is_float(StoredType type) {
  return type == StoredType::kF32 || type == StoredType::kF16 || type == StoredType::kBf16;
}

// Rotary frequencies that older writers stored; they follow from the config.
bool is_derived(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

// "model.layers.61.x" -> 61; -1 if the name is not of that form.
int layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  int layer = 0;
  std::size_t i = kPrefix.size();
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < 1'000'000; ++i) {
    layer = layer * 10 + (name[i] - '0');
  }
  return i > kPrefix.size() && i < name.size() && name[i] == '.' ? layer : -1;
}

}  // namespace

class CheckpointOpener {
 public:
  CheckpointOpener(std::filesystem::path dir, const ModelConfig& config)
      : dir_(std::move(dir)),
        config_(config),
        table_(tensor_table(config)),
        checkpoint_(new Checkpoint(config)) {}

  Result<std::unique_ptr<Checkpoint>> run() {
    RETURN_IF_ERROR(find_shards());
    RETURN_IF_ERROR(find_drafts());
    for (const TensorSpec& spec : table_) {
      if (spec.layer < 0 || !absent_drafts_.contains(spec.layer)) RETURN_IF_ERROR(check(spec));
    }
    RETURN_IF_ERROR(check_unknown());
    RETURN_IF_ERROR(lay_out_experts());
    find_experts();
    return std::move(checkpoint_);
  }

 private:
  Status find_shards();
  Status open_shard(const std::string& file, const std::string& reason);
  Status match_index(const std::vector<ShardedName>& index);
  Status add_entry(int file, const SafetensorsEntry& entry);
  Status find_drafts();
  Status check(const TensorSpec& spec);
  Status check_scale(const TensorSpec& spec, const StoredTensor& weight);
  Status check_unknown();
  Status lay_out_experts();
  void find_experts();
  void count(const TensorSpec& spec, const StoredTensor& tensor);

  Error wrong(std::string_view name, std::string what) const {
    return Error(ErrorCode::kCorrupt,
                 fmt::format("{}: tensor {} {}", where(name), name, std::move(what)));
  }
  std::string where(std::string_view name) const {
    const StoredTensor* tensor = checkpoint_->find(name);
    return (tensor != nullptr ? checkpoint_->path_of(*tensor) : dir_).string();
  }

  std::filesystem::path dir_;
  const ModelConfig& config_;
  std::vector<TensorSpec> table_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unordered_set<int> absent_drafts_;          // draft layers that are not stored
  std::unordered_set<const StoredTensor*> known_;  // claimed by the table
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
  ReadFile shard = std::move(opened).value();
  std::vector<std::byte> head(static_cast<std::size_t>(std::min<std::int64_t>(8, shard.size())));
  RETURN_IF_ERROR(shard.read(0, head));
  ASSIGN_OR_RETURN(const std::int64_t data_begin, safetensors_data_begin(head, shard.size()), "{}",
                   shard.path().string());
  head.resize(static_cast<std::size_t>(data_begin));
  RETURN_IF_ERROR(shard.read(0, head));
  ASSIGN_OR_RETURN(const SafetensorsHeader header, parse_safetensors(head, shard.size()), "{}",
                   shard.path().string());
  checkpoint_->files_.push_back(std::move(shard));
  const int index = static_cast<int>(checkpoint_->files_.size()) - 1;
  for (const SafetensorsEntry& entry : header.entries) RETURN_IF_ERROR(add_entry(index, entry));
  return {};
}

Status CheckpointOpener::add_entry(int file, const SafetensorsEntry& entry) {
  StoredTensor tensor;
  tensor.file = file;
  tensor.type = entry.type;
  tensor.offset = entry.offset;
  tensor.bytes = entry.bytes;
  tensor.rank = static_cast<int>(entry.shape.size());
  tensor.rows = tensor.rank >= 2 ? entry.shape[0] : 1;
  tensor.cols = tensor.rank >= 2 ? entry.shape[1] : tensor.rank == 1 ? entry.shape[0] : 1;
  const auto [at, added] = checkpoint_->tensors_.emplace(entry.name, tensor);
  if (added) return {};
  return make_error(ErrorCode::kCorrupt, "tensor {} is stored twice, in {} and in {}", entry.name,
                    checkpoint_->path_of(at->second).string(),
                    checkpoint_->path_of(tensor).string());
}

Status CheckpointOpener::match_index(const std::vector<ShardedName>& index) {
  std::unordered_set<std::string_view> listed;
  for (const ShardedName& name : index) {
    const StoredTensor* tensor = checkpoint_->find(name.tensor);
    listed.insert(name.tensor);
    if (tensor != nullptr && checkpoint_->path_of(*tensor).filename() == name.file) continue;
    return make_error(ErrorCode::kCorrupt,
                      "{}: lists tensor {} in {}, which does not hold it{}; index and shards are "
                      "of different checkpoints: fetch them again",
                      (dir_ / kIndexFile).string(), name.tensor, name.file,
                      tensor == nullptr ? "" : " (" + where(name.tensor) + " does)");
  }
  int unlisted = 0;
  std::string first;
  for (auto& [name, tensor] : checkpoint_->tensors_) {
    if (listed.contains(name)) continue;
    tensor.ignored = true;
    if (unlisted++ == 0) first = name;
  }
  if (unlisted > 0) {
    checkpoint_->notices_.push_back(
        fmt::format("{} tensors are stored but not listed in {}, the first {}: ignored", unlisted,
                    kIndexFile, first));
  }
  return {};
}

// Config and files may disagree about draft layers: published converters drop either.
Status CheckpointOpener::find_drafts() {
  for (const LayerSpec& layer : config_.layers()) {
    if (layer.role != LayerRole::kDraft) continue;
    const auto stored = checkpoint_->tensors_.lower_bound(layer_prefix(layer.index));
    if (stored != checkpoint_->tensors_.end() &&
        stored->first.starts_with(layer_prefix(layer.index))) {
      continue;
    }
    absent_drafts_.insert(layer.index);
    checkpoint_->notices_.push_back(
        fmt::format("config.json promises draft layer {} (num_nextn_predict_layers {}), which is "
                    "not stored: running without it",
                    layer.index, config_.num_nextn_predict_layers));
  }
  const int num_layers = static_cast<int>(config_.layers().size());
  std::unordered_map<int, bool> extra;  // stored layers past the table -> is a draft layer
  for (const auto& [name, tensor] : checkpoint_->tensors_) {
    if (const int layer = layer_of(name); layer >= num_layers && !tensor.ignored) {
      extra.try_emplace(layer, checkpoint_->has(layer_prefix(layer) + "eh_proj.weight"));
    }
  }
  for (auto& [name, tensor] : checkpoint_->tensors_) {
    const auto it = extra.find(layer_of(name));
    if (it != extra.end() && it->second) tensor.ignored = true;
  }
  for (const auto& [layer, is_draft] : extra) {
    if (!is_draft) continue;  // check_unknown() names it
    checkpoint_->notices_.push_back(fmt::format(
        "draft layer {} is stored, but config.json has num_nextn_predict_layers {}: ignored", layer,
        config_.num_nextn_predict_layers));
  }
  return {};
}

Status CheckpointOpener::check(const TensorSpec& spec) {
  const StoredTensor* tensor = checkpoint_->find(spec.name);
  if (tensor == nullptr || tensor->ignored) {
    if (spec.optional) return {};
    return make_error(
        ErrorCode::kNotFound,
        "{}: tensor {} [{}, {}] is missing; the checkpoint is incomplete or config.json "
        "is of another model",
        dir_.string(), spec.name, spec.rows, spec.cols);
  }
  const bool rank_ok = tensor->rank == 2 || (tensor->rank == 1 && spec.is_vector());
  if (!rank_ok || tensor->rows != spec.rows || tensor->cols != spec.cols) {
    const std::string stored = tensor->rank == 1 ? fmt::format("[{}]", tensor->cols)
                               : tensor->rank == 2
                                   ? fmt::format("[{}, {}]", tensor->rows, tensor->cols)
                                   : fmt::format("of rank {}", tensor->rank);
    const std::string wanted = spec.is_vector() ? fmt::format("[{}]", spec.cols)
                                                : fmt::format("[{}, {}]", spec.rows, spec.cols);
    return wrong(
        spec.name,
        fmt::format("is {}, config.json implies {}; they are of different models", stored, wanted));
  }
  const bool may_be_fp8 = spec.kind == TensorKind::kLinear;
  const bool fp8 = tensor->type == StoredType::kF8E4m3;
  if (!is_float(tensor->type) && !(fp8 && may_be_fp8)) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: tensor {} has dtype {}; supported here: {}BF16, "
                      "F16, F32",
                      where(spec.name), spec.name, stored_type_info(tensor->type).name,
                      may_be_fp8 ? "F8_E4M3, " : "");
  }
  known_.insert(tensor);
  count(spec, *tensor);
  return check_scale(spec, *tensor);
}

Status CheckpointOpener::check_scale(const TensorSpec& spec, const StoredTensor& weight) {
  const std::string name = scale_name(spec.name);
  const StoredTensor* scale = checkpoint_->find(name);
  const bool stored = scale != nullptr && !scale->ignored;
  if (weight.type != StoredType::kF8E4m3) {
    if (!stored) return {};
    return wrong(name, fmt::format("is the scale of an FP8 weight, but {} is stored in {}",
                                   spec.name, stored_type_info(weight.type).name));
  }
  const std::int64_t rows = (spec.rows + kBlock - 1) / kBlock;
  const std::int64_t cols = (spec.cols + kBlock - 1) / kBlock;
  if (!stored) {
    return wrong(spec.name, fmt::format("is F8_E4M3 and its scale {} [{}, {}] is missing; the "
                                        "checkpoint is incomplete",
                                        name, rows, cols));
  }
  if (scale->type != StoredType::kF32) {
    return wrong(name,
                 fmt::format("has dtype {}, must be F32", stored_type_info(scale->type).name));
  }
  if (scale->rank != 2 || scale->rows != rows || scale->cols != cols) {
    return wrong(name,
                 fmt::format("is [{}, {}], must be [{}, {}]: one scale per 128 x 128 block of "
                             "[{}, {}]",
                             scale->rows, scale->cols, rows, cols, spec.rows, spec.cols));
  }
  known_.insert(scale);
  count(spec, *scale);
  return {};
}

void CheckpointOpener::count(const TensorSpec& spec, const StoredTensor& tensor) {
  checkpoint_->category_bytes_[static_cast<std::size_t>(spec.category)] += tensor.bytes;
  const bool dense =
      spec.category != TensorCategory::kRoutedExperts && spec.category != TensorCategory::kMtp;
  // A tied head that is stored again is not read.
  if (dense && !spec.optional) checkpoint_->dense_bytes_ += tensor.bytes;
}

Status CheckpointOpener::check_unknown() {
  for (auto& [name, tensor] : checkpoint_->tensors_) {
    if (tensor.ignored || known_.contains(&tensor)) continue;
    if (is_derived(name)) {
      tensor.ignored = true;
      continue;
    }
    return wrong(name,
                 fmt::format("is no part of a {} with {} layers; config.json is of another model",
                             config_.model_type_name(), config_.num_hidden_layers));
  }
  return {};
}

// Kernels want one format per layer.
Status CheckpointOpener::lay_out_experts() {
  for (const TensorSpec& spec : table_) {
    if (spec.expert < 0 || absent_drafts_.contains(spec.layer)) continue;
    const StoredTensor* tensor = checkpoint_->find(spec.name);
    QuantSpec quant;
    quant.format = tensor->type == StoredType::kF8E4m3 ? QuantFormat::kF8E4m3B128
                   : tensor->type == StoredType::kBf16 ? QuantFormat::kBf16
                   : tensor->type == StoredType::kF16  ? QuantFormat::kF16
                                                       : QuantFormat::kF32;
    const auto [it, added] = checkpoint_->experts_.try_emplace(
        spec.layer, config_.hidden_size, config_.moe_intermediate_size, quant);
    if (!added && it->second.spec() != quant) {
      return make_error(ErrorCode::kUnsupported,
                        "{}: tensor {} is {}, other experts of its layer are {}; all must be alike",
                        where(spec.name), spec.name, quant_format_name(quant.format),
                        quant_format_name(it->second.spec().format));
    }
  }
  return {};
}

// Where each of them lies: readers ask often, and not by name.
void CheckpointOpener::find_experts() {
  for (auto& [layer, shards] : checkpoint_->experts_) {
    for (int expert = 0; expert < config_.n_routed_experts; ++expert) {
      ExpertShards::Expert tensors;
      for (std::size_t i = 0; i < kProjections.size(); ++i) {
        const std::string name = expert_tensor_name({layer, expert}, kProjections[i]);
        tensors.weights[i] = checkpoint_->find(name);
        if (shards.spec().has_scales()) tensors.scales[i] = checkpoint_->find(scale_name(name));
      }
      shards.add(tensors);
    }
  }
  for (const ReadFile& file : checkpoint_->files_) {
    checkpoint_->extent_files_.push_back({file.path(), file.size()});
  }
}

}  // namespace stoker::storage
