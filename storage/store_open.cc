// Opening a store: read the manifest, find the files it lists, hold everything against the config.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <string>

#include "core/base/file.h"
#include "core/model/model_config.h"
#include "storage/data_file.h"
#include "storage/expert_dirs.h"
#include "storage/store.h"
#include "storage/tensor_check.h"

namespace stoker::storage {
namespace {}  // namespace

class StoreOpener {
 public:
  StoreOpener(std::filesystem::path dir, const ModelConfig& config,
              std::span<const std::filesystem::path> expert_dirs)
      : dir_(std::move(dir)), expert_dirs_(expert_dirs), store_(new Store(config)) {}

  Result<std::unique_ptr<Store>> run() {
    RETURN_IF_ERROR(read_manifest());
    RETURN_IF_ERROR(check_layers());
    RETURN_IF_ERROR(open_dense());
    ASSIGN_OR_RETURN(search_, expert_directories(dir_, expert_dirs_));
    for (const ManifestFile& file : manifest().files) {
      if (file.is_data && file.name != kDenseFile) RETURN_IF_ERROR(open_expert_file(file));
    }
    RETURN_IF_ERROR(check_complete());
    count_experts();
    return std::move(store_);
  }

 private:
  struct DataFile {
    ReadFile file;
    SafetensorsHeader header;
    std::string table;
  };

  Status read_manifest();
  Status check_layers();
  Status open_dense();
  Status open_expert_file(const ManifestFile& file);
  Status place_experts(int index, const DataFile& data);
  Status check_complete();
  void count_experts();

  // Opens a file that the manifest lists, and holds size and hashes against it.
  Result<DataFile> open_data_file(const std::filesystem::path& path,
                                  const ManifestFile& file) const;
  Result<const ManifestFile*> listed(std::string_view name) const;
  const Manifest& manifest() const { return store_->manifest_; }
  std::string manifest_path() const { return (dir_ / kManifestFile).string(); }

  std::filesystem::path dir_;
  std::span<const std::filesystem::path> expert_dirs_;
  std::vector<std::filesystem::path> search_;  // where expert files may lie, each place once
  std::unique_ptr<Store> store_;
};

Result<std::unique_ptr<Store>> Store::open(const std::filesystem::path& dir,
                                           const ModelConfig& config,
                                           std::span<const std::filesystem::path> expert_dirs) {
  return StoreOpener(dir, config, expert_dirs).run();
}

Result<const ManifestFile*> StoreOpener::listed(std::string_view name) const {
  if (const ManifestFile* file = manifest().file(name)) return file;
  return make_error(ErrorCode::kCorrupt, "{}: does not list {}; pack the model again",
                    manifest_path(), name);
}

Status StoreOpener::read_manifest() {
  ASSIGN_OR_RETURN(const std::string text,
                   read_small_file(dir_ / kManifestFile, kMaxManifestBytes));
  ASSIGN_OR_RETURN(store_->manifest_, parse_manifest(text), "{}", manifest_path());
  ASSIGN_OR_RETURN(const ManifestFile* config, listed("config.json"));
  ASSIGN_OR_RETURN(const std::string config_text,
                   read_small_file(dir_ / "config.json", ModelConfig::kMaxBytes));
  if (hash128(config_text) != config->hash) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: is not the one that the model was packed with; put it back, or pack the "
                      "model again with the config.json it is to have",
                      (dir_ / "config.json").string());
  }
  return {};
}

Status StoreOpener::check_layers() {
  const ModelConfig& config = store_->config_;
  for (const PackedLayer& layer : manifest().layers) {
    const bool is_moe = std::cmp_less(layer.layer, config.layers().size()) &&
                        config.layers()[static_cast<std::size_t>(layer.layer)].ffn == FfnKind::kMoe;
    if (!is_moe || layer.num_experts != config.n_routed_experts) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: lists {} experts of layer {}, config.json implies {}; they are of "
                        "different models: pack the model again",
                        manifest_path(), layer.num_experts, layer.layer,
                        is_moe ? config.n_routed_experts : 0);
    }
    quant::ExpertBlocks blocks(config.hidden_size, config.moe_intermediate_size, layer.spec);
    if (blocks.expert_bytes() != layer.expert_bytes || blocks.num_blocks() != layer.num_blocks) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: an expert of layer {} has {} bytes in {} blocks, config.json and "
                        "format {} imply {} in {}; pack the model again",
                        manifest_path(), layer.layer, layer.expert_bytes, layer.num_blocks,
                        quant_spec_name(layer.spec), blocks.expert_bytes(), blocks.num_blocks());
    }
    store_->experts_[static_cast<std::size_t>(layer.layer)] = {layer.spec, blocks};
  }
  store_->places_.resize(config.layers().size());
  for (const LayerSpec& layer : config.layers()) {
    const auto index = static_cast<std::size_t>(layer.index);
    if (store_->experts_[index]) {
      store_->places_[index].resize(static_cast<std::size_t>(config.n_routed_experts));
    } else if (layer.ffn == FfnKind::kMoe && layer.role == LayerRole::kMain) {
      return make_error(ErrorCode::kCorrupt,
                        "{}: lists no experts of layer {}; they are of different models: pack the "
                        "model again",
                        manifest_path(), layer.index);
    }
  }
  return {};
}

Result<StoreOpener::DataFile> StoreOpener::open_data_file(const std::filesystem::path& path,
                                                          const ManifestFile& file) const {
  const auto damaged = [&](std::string_view what) {
    return make_error(ErrorCode::kCorrupt,
                      "{}: {}; `stoker verify {}` lists everything that is bad; replace the file "
                      "from a good copy, or pack again",
                      path.string(), what, dir_.string());
  };
  ASSIGN_OR_RETURN(ReadFile opened, ReadFile::open(path));
  if (opened.size() != file.bytes) {
    return damaged(fmt::format("has {} bytes, the manifest says {}", opened.size(), file.bytes));
  }
  std::vector<std::byte> head(8);
  if (opened.size() < 8) return damaged("is too short for a header");
  RETURN_IF_ERROR(opened.read(0, head));
  ASSIGN_OR_RETURN(const std::int64_t data_begin, safetensors_data_begin(head, opened.size()), "{}",
                   path.string());
  head.resize(static_cast<std::size_t>(data_begin));
  RETURN_IF_ERROR(opened.read(0, head));
  if (const Hash128 found = hash128(head); found != file.head) {
    return damaged(
        fmt::format("its header has hash {}, the manifest says {}", hex(found), hex(file.head)));
  }
  ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors(head, opened.size()), "{}",
                   path.string());
  if (header.entries.empty() || header.entries.back().name != kChecksumTensor) {
    return damaged(fmt::format("its last tensor is not {}", kChecksumTensor));
  }
  std::string table(static_cast<std::size_t>(header.entries.back().bytes), '\0');
  RETURN_IF_ERROR(
      opened.read(header.entries.back().offset, std::as_writable_bytes(std::span(table))));
  if (const Hash128 found = hash128(table); found != file.table) {
    return damaged(fmt::format("its table of checksums has hash {}, the manifest says {}",
                               hex(found), hex(file.table)));
  }
  header.entries.pop_back();
  return DataFile{std::move(opened), std::move(header), std::move(table)};
}

Status StoreOpener::open_dense() {
  ASSIGN_OR_RETURN(const ManifestFile* file, listed(kDenseFile));
  ASSIGN_OR_RETURN(DataFile data, open_data_file(dir_ / kDenseFile, *file));
  const auto count = std::ssize(data.header.entries);
  if (std::cmp_less(data.table.size(), count * kChecksumBytes)) {
    return make_error(ErrorCode::kCorrupt, "{}: its table of checksums is too short",
                      (dir_ / kDenseFile).string());
  }
  const std::vector<std::uint64_t> checksums = checksums_of(data.table, count);
  RETURN_IF_ERROR(store_->tensors_.add(std::move(data.file)));
  for (std::size_t i = 0; i < checksums.size(); ++i) {
    store_->tensors_.set_checksum(data.header.entries[i].name, checksums[i]);
  }
  store_->tensors_.remove(kChecksumTensor);
  TensorCheck check(dir_, store_->config_, TensorScope::kAllButRoutedExperts, store_->tensors_);
  RETURN_IF_ERROR(check.run());
  store_->category_bytes_ = check.category_bytes();
  store_->dense_bytes_ = check.dense_bytes();
  store_->notices_ = check.notices();
  for (const LayerSpec& layer : store_->config_.layers()) {
    const bool packed = store_->experts_[static_cast<std::size_t>(layer.index)].has_value();
    if (layer.ffn != FfnKind::kMoe || packed != check.absent_drafts().contains(layer.index)) {
      continue;
    }
    return make_error(ErrorCode::kCorrupt,
                      "{}: {} the experts of draft layer {}, {} {} the rest of it; pack the model "
                      "again",
                      manifest_path(), packed ? "lists" : "does not list", layer.index, kDenseFile,
                      packed ? "lacks" : "holds");
  }
  return {};
}

Status StoreOpener::open_expert_file(const ManifestFile& file) {
  const int index = static_cast<int>(store_->expert_files_.size());
  store_->expert_files_.emplace_back();
  std::vector<Error> bad;
  for (const std::filesystem::path& path : find_copies(search_, file.name)) {
    Result<DataFile> data = open_data_file(path, file);
    if (!data.ok()) {
      bad.push_back(std::move(data).error());
      continue;
    }
    Store::ExpertFile& expert_file = store_->expert_files_[static_cast<std::size_t>(index)];
    if (expert_file.replicas.empty()) RETURN_IF_ERROR(place_experts(index, *data));
    expert_file.replicas.push_back(static_cast<int>(store_->extent_files_.size()));
    store_->extent_files_.push_back({path, data->file.size()});
    store_->handles_.push_back(std::move(data->file));
  }
  if (store_->expert_files_.back().replicas.empty()) {
    if (!bad.empty()) return bad.front();
    std::vector<std::string> places;
    places.reserve(search_.size());
    for (const std::filesystem::path& dir : search_) places.push_back(dir.string());
    return make_error(ErrorCode::kNotFound,
                      "{} is not in {}; name every directory that holds expert files of this store "
                      "with --store A,B",
                      file.name, fmt::join(places, " or "));
  }
  for (const Error& error : bad) {
    store_->notices_.push_back("left out, as another copy is good: " + error.message());
  }
  return {};
}

// All tensors of an expert file are experts of layers that the manifest lists, each once in the
// store.
Status StoreOpener::place_experts(int index, const DataFile& data) {
  const auto wrong = [&](std::string_view name, std::string_view what) {
    return make_error(ErrorCode::kCorrupt, "{}: tensor {} {}; pack the model again",
                      data.file.path().string(), name, what);
  };
  std::int64_t next = 0;
  for (const SafetensorsEntry& entry : data.header.entries) {
    const std::optional<ExpertId> named = packed_expert_named(entry.name);
    if (!named || std::cmp_greater_equal(named->layer, store_->places_.size()) ||
        std::cmp_greater_equal(named->expert,
                               store_->places_[static_cast<std::size_t>(named->layer)].size())) {
      return wrong(entry.name, "is no expert that the manifest lists");
    }
    const ExpertId id = *named;
    Store::Place& place =
        store_->places_[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.expert)];
    if (place.file >= 0) return wrong(entry.name, "is stored twice");
    if (entry.bytes != store_->expert_bytes(id.layer) || entry.offset % kExtentAlign != 0) {
      return wrong(entry.name, fmt::format("has {} bytes at offset {}, must have {} at a multiple "
                                           "of {}",
                                           entry.bytes, entry.offset,
                                           store_->expert_bytes(id.layer), kExtentAlign));
    }
    place = {index, entry.offset, next};
    next += store_->num_blocks(id.layer);
  }
  if (std::cmp_less(data.table.size(), next * kChecksumBytes)) {
    return wrong(kChecksumTensor, fmt::format("is too short for {} blocks", next));
  }
  store_->expert_files_[static_cast<std::size_t>(index)].checksums = checksums_of(data.table, next);
  return {};
}

Status StoreOpener::check_complete() {
  for (const PackedLayer& layer : manifest().layers) {
    for (int expert = 0; expert < layer.num_experts; ++expert) {
      if (store_->place({layer.layer, expert}).file >= 0) continue;
      return make_error(ErrorCode::kCorrupt,
                        "{}: expert {} of layer {} is in none of the files that it lists; pack the "
                        "model again",
                        manifest_path(), expert, layer.layer);
    }
  }
  return {};
}

void StoreOpener::count_experts() {
  for (const PackedLayer& layer : manifest().layers) {
    const LayerRole role = store_->config_.layers()[static_cast<std::size_t>(layer.layer)].role;
    const TensorCategory category =
        role == LayerRole::kMain ? TensorCategory::kRoutedExperts : TensorCategory::kMtp;
    store_->category_bytes_[static_cast<std::size_t>(category)] +=
        layer.expert_bytes * layer.num_experts;
  }
}

}  // namespace stoker::storage
