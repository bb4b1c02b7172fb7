#include "storage/tensor_check.h"

#include <fmt/format.h>

#include <unordered_map>

namespace stoker::storage {
namespace {

constexpr std::int64_t kBlock = 128;  // rows and columns that share an FP8 scale

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

TensorCheck::TensorCheck(const std::filesystem::path& dir, const ModelConfig& config,
                         TensorScope scope, TensorFiles& tensors)
    : dir_(dir), config_(config), scope_(scope), tensors_(tensors) {}

Status TensorCheck::run() {
  RETURN_IF_ERROR(find_drafts());
  for (TensorSpec& spec : tensor_table(config_)) {
    if (spec.layer >= 0 && absent_drafts_.contains(spec.layer)) continue;
    if (spec.expert >= 0 && scope_ == TensorScope::kAllButRoutedExperts) continue;
    RETURN_IF_ERROR(check(spec));
    if (tensors_.has(spec.name)) found_.push_back(std::move(spec));
  }
  return check_unknown();
}

Error TensorCheck::wrong(std::string_view name, std::string what) const {
  return Error(ErrorCode::kCorrupt,
               fmt::format("{}: tensor {} {}", where(name), name, std::move(what)));
}

std::string TensorCheck::where(std::string_view name) const {
  const StoredTensor* tensor = tensors_.find(name);
  return (tensor != nullptr ? tensors_.path_of(*tensor) : dir_).string();
}

// Config and files may disagree about draft layers: published converters drop either.
Status TensorCheck::find_drafts() {
  for (const LayerSpec& layer : config_.layers()) {
    if (layer.role != LayerRole::kDraft) continue;
    const auto stored = tensors_.all().lower_bound(layer_prefix(layer.index));
    if (stored != tensors_.all().end() && stored->first.starts_with(layer_prefix(layer.index))) {
      continue;
    }
    absent_drafts_.insert(layer.index);
    notices_.push_back(
        fmt::format("config.json promises draft layer {} (num_nextn_predict_layers {}), which is "
                    "not stored: running without it",
                    layer.index, config_.num_nextn_predict_layers));
  }
  const int num_layers = static_cast<int>(config_.layers().size());
  std::unordered_map<int, bool> extra;  // stored layers past the table -> is a draft layer
  for (const auto& [name, tensor] : tensors_.all()) {
    if (const int layer = layer_of(name); layer >= num_layers && !tensor.ignored) {
      extra.try_emplace(layer, tensors_.has(layer_prefix(layer) + "eh_proj.weight"));
    }
  }
  for (const auto& [name, tensor] : tensors_.all()) {
    const auto it = extra.find(layer_of(name));
    if (it != extra.end() && it->second) tensors_.ignore(name);
  }
  for (const auto& [layer, is_draft] : extra) {
    if (!is_draft) continue;  // check_unknown() names it
    notices_.push_back(fmt::format(
        "draft layer {} is stored, but config.json has num_nextn_predict_layers {}: ignored", layer,
        config_.num_nextn_predict_layers));
  }
  return {};
}

Status TensorCheck::check(const TensorSpec& spec) {
  const StoredTensor* tensor = tensors_.find(spec.name);
  if (tensor == nullptr || tensor->ignored) {
    if (spec.optional) return {};
    return make_error(
        ErrorCode::kNotFound,
        "{}: tensor {} [{}, {}] is missing; the model is incomplete or config.json is "
        "of another",
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

Status TensorCheck::check_scale(const TensorSpec& spec, const StoredTensor& weight) {
  const std::string name = scale_name(spec.name);
  const StoredTensor* scale = tensors_.find(name);
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

void TensorCheck::count(const TensorSpec& spec, const StoredTensor& tensor) {
  category_bytes_[static_cast<std::size_t>(spec.category)] += tensor.bytes;
  const bool dense =
      spec.category != TensorCategory::kRoutedExperts && spec.category != TensorCategory::kMtp;
  // A tied head that is stored again is not read.
  if (dense && !spec.optional) dense_bytes_ += tensor.bytes;
}

Status TensorCheck::check_unknown() {
  for (const auto& [name, tensor] : tensors_.all()) {
    if (tensor.ignored || known_.contains(&tensor)) continue;
    if (is_derived(name)) {
      tensors_.ignore(name);
      continue;
    }
    return wrong(name,
                 fmt::format("is no part of a {} with {} layers; config.json is of another model",
                             config_.model_type_name(), config_.num_hidden_layers));
  }
  return {};
}

}  // namespace stoker::storage
