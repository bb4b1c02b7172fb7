#include "tools/inspect_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "storage/open_model.h"
#include "storage/store.h"
#include "tools/json_object.h"

namespace stoker::tools {
namespace {

constexpr std::array kKvFormats = {std::pair("bf16", KvFormat::kBf16),
                                   std::pair("f32", KvFormat::kF32),
                                   std::pair("fp8", KvFormat::kFp8)};

// The dimensions that say what kind of model it is, under their names in config.json.
std::vector<std::pair<const char*, int>> dimensions(const ModelConfig& config) {
  std::vector<std::pair<const char*, int>> all = {
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_nextn_predict_layers", config.num_nextn_predict_layers},
      {"first_k_dense_replace", config.first_k_dense_replace},
      {"intermediate_size", config.intermediate_size},
      {"moe_intermediate_size", config.moe_intermediate_size},
      {"n_routed_experts", config.n_routed_experts},
      {"n_shared_experts", config.n_shared_experts},
      {"num_experts_per_tok", config.num_experts_per_tok},
      {"n_group", config.n_group},
      {"topk_group", config.topk_group},
      {"num_attention_heads", config.num_attention_heads},
      {"q_lora_rank", config.q_lora_rank},
      {"kv_lora_rank", config.kv_lora_rank},
      {"qk_nope_head_dim", config.qk_nope_head_dim},
      {"qk_rope_head_dim", config.qk_rope_head_dim},
      {"v_head_dim", config.v_head_dim},
      {"max_position_embeddings", config.max_position_embeddings}};
  if (config.indexer_dims()) {
    all.insert(all.end(), {{"index_n_heads", config.index_n_heads},
                           {"index_head_dim", config.index_head_dim},
                           {"index_topk", config.index_topk}});
  }
  return all;
}

// The first main layer with experts, or -1.
int first_moe_layer(const ModelConfig& config) {
  for (const LayerSpec& layer : config.layers()) {
    if (layer.role == LayerRole::kMain && layer.ffn == FfnKind::kMoe) return layer.index;
  }
  return -1;
}

void add_experts(const storage::ModelSource& source, int layer, ModelReport& report) {
  report.expert_spec = source.expert_spec(layer);
  report.slot_bytes = source.expert_bytes(layer);
  for (int block = 0; block < source.num_blocks(layer); ++block) {
    report.block_bytes.push_back(source.block_bytes(layer, block));
  }
}

void add_store(const storage::Store& store, ModelReport& report) {
  report.packed = true;
  report.source_model = store.manifest().source_model;
  std::map<std::string, int> copies;
  for (const storage::ExtentFile& file : store.extent_files()) {
    report.expert_files.push_back(
        {file.path.string(), file.size, copies[file.path.filename().string()]++});
  }
  report.num_files += static_cast<int>(copies.size());
  for (const storage::PackedLayer& layer : store.manifest().layers) {
    report.num_tensors += layer.num_experts;
  }
}

// "6 blocks of 1.0 MiB" for sizes that follow each other.
std::string blocks_text(const std::vector<std::int64_t>& bytes) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0, end = 0; begin < bytes.size(); begin = end) {
    while (end < bytes.size() && bytes[end] == bytes[begin]) ++end;
    parts.push_back(fmt::format("{} of {}", end - begin, human_bytes(bytes[begin])));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

std::string human_bytes(std::int64_t bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

Result<ModelReport> inspect_model(const std::filesystem::path& directory,
                                  std::span<const std::filesystem::path> expert_dirs) {
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::load(directory));
  ASSIGN_OR_RETURN(const std::unique_ptr<storage::ModelSource> source,
                   storage::open_model(directory, config, expert_dirs));
  ModelReport report{.directory = directory.string(), .config = std::move(config)};
  report.num_files = static_cast<int>(source->files().size());
  report.num_tensors = source->num_tensors();
  report.bytes = source->category_bytes();
  report.total_bytes = source->total_bytes();
  report.notices = source->notices();
  report.expert_spec = QuantSpec{report.config.stored_format};
  const int layer = first_moe_layer(report.config);
  if (layer >= 0) add_experts(*source, layer, report);
  if (const auto* store = dynamic_cast<const storage::Store*>(source.get())) {
    add_store(*store, report);
  }
  return report;
}

JsonValue model_to_json(const ModelReport& report) {
  const ModelConfig& config = report.config;
  JsonObject dims;
  dims.add("model_type", config.model_type_name());
  for (const auto& [name, value] : dimensions(config)) dims.add(name, value);
  JsonObject bytes;
  for (int i = 0; i < kNumTensorCategories; ++i) {
    std::string key(tensor_category_name(static_cast<TensorCategory>(i)));
    std::replace(key.begin(), key.end(), ' ', '_');
    bytes.add(key, report.bytes[static_cast<std::size_t>(i)]);
  }
  bytes.add("total", report.total_bytes);
  JsonObject kv;
  for (const auto& [name, format] : kKvFormats) kv.add(name, config.kv_bytes_per_token(format));
  JsonObject costs;
  costs.add("weights_read_bytes", config.active_bytes(report.expert_spec))
      .add("expert_bytes", config.expert_bytes(report.expert_spec))
      .add("expert_format", quant_spec_name(report.expert_spec))
      .add("kv_bytes", std::move(kv));
  JsonObject experts;
  experts.add("format", quant_spec_name(report.expert_spec))
      .add("slot_bytes", report.slot_bytes)
      .add("block_bytes", json_array(report.block_bytes));
  JsonArray expert_files;
  for (const ExpertFileReport& file : report.expert_files) {
    JsonObject entry;
    entry.add("path", file.path).add("bytes", file.bytes).add("copy", file.copy);
    expert_files.push_back(std::move(entry).build());
  }
  JsonObject object;
  object.add("directory", report.directory)
      .add("packed", report.packed)
      .add("packed_from", report.source_model)
      .add("config", std::move(dims))
      .add("files", report.num_files)
      .add("tensors", report.num_tensors)
      .add("bytes", std::move(bytes))
      .add("per_token", std::move(costs))
      .add("experts", std::move(experts))
      .add("expert_files", JsonValue(std::move(expert_files)))
      .add("notices", json_array(report.notices));
  return std::move(object).build();
}

std::string model_to_text(const ModelReport& report) {
  const ModelConfig& config = report.config;
  std::string text =
      fmt::format("{}\n\n  {:<26} {}\n", report.directory, "model_type", config.model_type_name());
  auto out = std::back_inserter(text);
  for (const auto& [name, value] : dimensions(config)) {
    fmt::format_to(out, "  {:<26} {}\n", name, value);
  }
  const std::string packed =
      report.packed ? fmt::format(", packed from {}", report.source_model) : std::string();
  fmt::format_to(out, "\n{} tensors in {} files{}\n", report.num_tensors, report.num_files, packed);
  for (int i = 0; i < kNumTensorCategories; ++i) {
    const std::int64_t bytes = report.bytes[static_cast<std::size_t>(i)];
    if (bytes == 0) continue;
    const double share =
        100.0 * static_cast<double>(bytes) / static_cast<double>(report.total_bytes);
    fmt::format_to(out, "  {:<26} {:>11} {:5.1f} %\n",
                   tensor_category_name(static_cast<TensorCategory>(i)), human_bytes(bytes), share);
  }
  fmt::format_to(out, "  {:<26} {:>11}\n\nA token costs\n", "total",
                 human_bytes(report.total_bytes));
  fmt::format_to(out, "  {:<26} {:>11}\n", "weights read to decode it",
                 human_bytes(config.active_bytes(report.expert_spec)));
  fmt::format_to(out, "  {:<26} {:>11}  {}\n", "of which each expert",
                 human_bytes(config.expert_bytes(report.expert_spec)),
                 quant_spec_name(report.expert_spec));
  for (const auto& [name, format] : kKvFormats) {
    fmt::format_to(out, "  {:<26} {:>11}\n", fmt::format("cached keys, {}", name),
                   human_bytes(config.kv_bytes_per_token(format)));
  }
  if (!report.block_bytes.empty()) {
    fmt::format_to(out, "\nAn expert in memory\n  {:<26} {:>11}  blocks: {}\n", "slot",
                   human_bytes(report.slot_bytes), blocks_text(report.block_bytes));
  }
  if (!report.expert_files.empty()) text += "\nPacked experts\n";
  for (const ExpertFileReport& file : report.expert_files) {
    fmt::format_to(out, "  {:>11}  {}{}\n", human_bytes(file.bytes), file.path,
                   file.copy == 0 ? "" : fmt::format("  (copy {})", file.copy));
  }
  for (const std::string& notice : report.notices) fmt::format_to(out, "\nnote: {}\n", notice);
  return text;
}

}  // namespace stoker::tools
