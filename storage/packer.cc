#include "storage/packer.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/model/tensor_table.h"
#include "storage/stream_file.h"

namespace stoker::storage {
namespace {

constexpr std::size_t kMaxSmallFile = 256 << 20;
constexpr std::array kProjections = {"gate_proj", "up_proj", "down_proj"};

// What a checkpoint directory may hold beside config.json that a run needs.
constexpr std::array kCopied = {"generation_config.json", "tokenizer.json",
                                "tokenizer_config.json"};

// The bytes of a store, read from a checkpoint past the page cache: every one is read once.
class PackedContent final : public StoreContent {
 public:
  static Result<PackedContent> open(const Checkpoint& checkpoint,
                                    std::vector<std::string> dense_names,
                                    std::vector<QuantSpec> specs);

  Status expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& scratch) override;
  Status dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
               ScratchBytes& scratch) override;
  std::int64_t scratch_bytes() const override { return scratch_bytes_; }

 private:
  PackedContent(const Checkpoint& checkpoint, std::vector<std::string> dense_names,
                std::vector<QuantSpec> specs)
      : checkpoint_(checkpoint), dense_names_(std::move(dense_names)), specs_(std::move(specs)) {}

  // What load() takes for a tensor.
  static std::int64_t room(const StoredTensor& tensor) {
    return StreamFile::around_bytes(tensor.bytes) + kPage;
  }
  // Reads bytes [offset, offset + bytes) of a tensor into `buffer`, which takes room(), and checks
  // that they are finite. The result is a part of `buffer`, aligned for its type.
  Result<std::span<std::byte>> load(std::string_view name, const StoredTensor& tensor,
                                    std::int64_t offset, std::int64_t bytes,
                                    std::byte* buffer) const;

  const Checkpoint& checkpoint_;
  std::vector<std::string> dense_names_;
  std::vector<QuantSpec> specs_;  // by layer: what experts become
  std::vector<StreamFile> files_;
  std::int64_t scratch_bytes_ = 0;
};

Result<PackedContent> PackedContent::open(const Checkpoint& checkpoint,
                                          std::vector<std::string> dense_names,
                                          std::vector<QuantSpec> specs) {
  PackedContent content(checkpoint, std::move(dense_names), std::move(specs));
  for (const ReadFile& file : checkpoint.files()) {
    ASSIGN_OR_RETURN(StreamFile opened, StreamFile::open_to_read(file.path()));
    content.files_.push_back(std::move(opened));
  }
  for (const int layer : checkpoint.expert_layers()) {
    std::int64_t bytes = 0;
    for (const char* projection : kProjections) {
      const std::string name = expert_tensor_name({layer, 0}, projection);
      bytes += room(*checkpoint.find(name));
      const StoredTensor* scale = checkpoint.find(scale_name(name));
      if (scale != nullptr) bytes += room(*scale);
    }
    content.scratch_bytes_ = std::max(content.scratch_bytes_, bytes);
  }
  return content;
}

Result<std::span<std::byte>> PackedContent::load(std::string_view name, const StoredTensor& tensor,
                                                 std::int64_t offset, std::int64_t bytes,
                                                 std::byte* buffer) const {
  ASSIGN_OR_RETURN(std::span<std::byte> read,
                   files_[static_cast<std::size_t>(tensor.file)].read_around(tensor.offset + offset,
                                                                             bytes, buffer),
                   "tensor {}", name);
  // Wide elements that lie crooked in the file are moved; a publisher's files have none.
  const int width = stored_type_info(tensor.type).bytes;
  if (reinterpret_cast<std::uintptr_t>(read.data()) % static_cast<std::uintptr_t>(width) != 0) {
    std::memmove(buffer, read.data(), read.size());
    read = {buffer, read.size()};
  }
  RETURN_IF_ERROR(checkpoint_.check_finite(name, tensor, offset / width, read));
  return read;
}

Status PackedContent::expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& scratch) {
  ASSIGN_OR_RETURN(std::byte * memory, scratch.get(scratch_bytes_));
  std::array<QuantView, kProjections.size()> views;
  for (std::size_t i = 0; i < views.size(); ++i) {
    const std::string name = expert_tensor_name(id, kProjections[i]);
    const StoredTensor& tensor = *checkpoint_.find(name);
    views[i].rows = tensor.rows;
    views[i].cols = tensor.cols;
    views[i].spec.format = quant_format_of(tensor.type);
    ASSIGN_OR_RETURN(const std::span<std::byte> payload,
                     load(name, tensor, 0, tensor.bytes, memory));
    views[i].payload = payload.data();
    memory += room(tensor);
    if (!views[i].spec.has_scales()) continue;
    const std::string scale = scale_name(name);
    const StoredTensor& stored_scale = *checkpoint_.find(scale);
    ASSIGN_OR_RETURN(const std::span<std::byte> scales,
                     load(scale, stored_scale, 0, stored_scale.bytes, memory));
    views[i].scales = reinterpret_cast<const float*>(scales.data());
    memory += room(stored_scale);
  }
  const ModelConfig& config = checkpoint_.config();
  const quant::ExpertBlocks blocks(config.hidden_size, config.moe_intermediate_size,
                                   specs_[static_cast<std::size_t>(id.layer)]);
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    blocks.write(block, views[0], views[1], views[2], dst.data() + blocks.block(block).offset);
  }
  return {};
}

Status PackedContent::dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
                            ScratchBytes& scratch) {
  const std::string& name = dense_names_[index];
  const StoredTensor& tensor = *checkpoint_.find(name);
  const auto bytes = std::ssize(dst);
  ASSIGN_OR_RETURN(std::byte* const memory, scratch.get(StreamFile::around_bytes(bytes)));
  ASSIGN_OR_RETURN(const std::span<std::byte> read, load(name, tensor, offset, bytes, memory));
  std::memcpy(dst.data(), read.data(), read.size());
  return {};
}

// Names of everything that is no packed expert, in the order of the source files, so that a
// rotating drive or a network file system is read in one sweep.
std::vector<std::string> dense_names(const Checkpoint& checkpoint) {
  std::vector<std::string> prefixes;
  for (const int layer : checkpoint.expert_layers()) {
    prefixes.push_back(layer_prefix(layer) + "mlp.experts.");
  }
  std::vector<std::string> names = checkpoint.names();
  std::erase_if(names, [&](const std::string& name) {
    return std::any_of(prefixes.begin(), prefixes.end(),
                       [&](const std::string& prefix) { return name.starts_with(prefix); });
  });
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    const StoredTensor *at_a = checkpoint.find(a), *at_b = checkpoint.find(b);
    return std::pair(at_a->file, at_a->offset) < std::pair(at_b->file, at_b->offset);
  });
  return names;
}

// Changes when a source file does: names, sizes, times and headers of all of them.
Result<Hash128> source_hash(const Checkpoint& checkpoint) {
  Hasher hasher;
  for (const ReadFile& file : checkpoint.files()) {
    struct stat info;
    if (::fstat(file.fd(), &info) != 0) {
      return make_error(ErrorCode::kIo, "{}: cannot stat", file.path().string());
    }
    const std::string line = fmt::format("{} {} {}.{:09}\n", file.path().filename().string(),
                                         info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    hasher.add(std::as_bytes(std::span(line)));
  }
  for (const std::string& name : checkpoint.names()) {
    const StoredTensor& tensor = *checkpoint.find(name);
    const std::string line = fmt::format("{} {} {} {}\n", name, tensor.file, tensor.offset,
                                         stored_type_info(tensor.type).name);
    hasher.add(std::as_bytes(std::span(line)));
  }
  return hasher.hash128();
}

// What the experts of `layer` become.
Result<QuantSpec> target_spec(const Checkpoint& checkpoint, int layer, const PackOptions& options) {
  const QuantSpec stored = checkpoint.expert_spec(layer);
  const QuantSpec target = options.experts.value_or(stored);
  if (target.format == QuantFormat::kF8E4m3B128 && stored != target) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the experts of layer {} are {}: FP8 experts are packed as published, from "
                      "FP8 checkpoints only; choose --experts int8 or int4",
                      layer, quant_spec_name(stored));
  }
  return target;
}

Result<StorePlan> plan_of(const std::filesystem::path& dir, const Checkpoint& checkpoint,
                          const PackOptions& options, const std::vector<std::string>& names) {
  StorePlan plan;
  const ModelConfig& config = checkpoint.config();
  plan.layers = checkpoint.expert_layers();
  plan.expert_specs.resize(config.layers().size());
  std::string formats;
  for (const int layer : plan.layers) {
    ASSIGN_OR_RETURN(const QuantSpec spec, target_spec(checkpoint, layer, options));
    plan.expert_specs[static_cast<std::size_t>(layer)] = spec;
    if (formats.empty()) formats = quant_spec_name(spec);
  }
  if (options.num_files < 1 || options.num_files > std::max(1, config.n_routed_experts)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{} expert files are too many: a layer has {} experts, a file gets at least "
                      "one of each",
                      options.num_files, config.n_routed_experts);
  }
  plan.num_files = options.num_files;
  plan.options = fmt::format("{} experts in {} file{}", formats.empty() ? "no" : formats,
                             options.num_files, options.num_files == 1 ? "" : "s");
  std::error_code ignored;
  const std::filesystem::path full = std::filesystem::weakly_canonical(dir, ignored);
  plan.source_model = full.filename().string();
  ASSIGN_OR_RETURN(plan.source, source_hash(checkpoint));
  ASSIGN_OR_RETURN(std::string text, read_small_file(dir / "config.json", kMaxSmallFile));
  plan.source_config = hash128(text);
  plan.copies.emplace_back("config.json", std::move(text));
  for (const char* name : kCopied) {
    Result<std::string> copied = read_small_file(dir / name, kMaxSmallFile);
    if (copied.ok()) {
      plan.copies.emplace_back(name, std::move(copied).value());
    } else if (copied.error().code() != ErrorCode::kNotFound) {
      return std::move(copied).error();
    }
  }
  for (const std::string& name : names) {
    const StoredTensor& tensor = *checkpoint.find(name);
    TensorDecl decl{name, tensor.type, {}};
    if (tensor.rank >= 2) decl.shape = {tensor.rows, tensor.cols};
    if (tensor.rank == 1) decl.shape = {tensor.cols};
    plan.dense.push_back(std::move(decl));
  }
  return plan;
}

}  // namespace

Status pack(const std::filesystem::path& dir, const Checkpoint& checkpoint,
            const std::filesystem::path& out, const PackOptions& options,
            const StoreWriteOptions& write_options) {
  std::vector<std::string> names = dense_names(checkpoint);
  ASSIGN_OR_RETURN(const StorePlan plan, plan_of(dir, checkpoint, options, names));
  ASSIGN_OR_RETURN(PackedContent content,
                   PackedContent::open(checkpoint, std::move(names), plan.expert_specs));
  return write_store(out, checkpoint.config(), plan, content, write_options);
}

}  // namespace stoker::storage
