// ModelSource: a model in files, whatever their form: a published checkpoint (checkpoint.h) or a
// packed store (store.h).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_source.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "quant/expert_block.h"
#include "storage/tensor_files.h"

namespace stoker::storage {

// What both forms share: named tensors in safetensors files, and for every MoE layer the layout of
// its experts. Immutable after opening; thread-safe.
class ModelSource : public WeightSource, public ExpertSource {
 public:
  using ExpertSource::read;

  // WeightSource.
  bool has(std::string_view name) const override { return tensors_.has(name); }
  Result<HostWeight> read(std::string_view name, std::int64_t rows,
                          std::int64_t cols) const override {
    return tensors_.read(name, rows, cols);
  }
  std::int64_t dense_bytes() const override { return dense_bytes_; }
  std::vector<std::string> names() const override { return tensors_.names(); }

  // ExpertSource, main and stored draft layers.
  int num_blocks(int layer) const override { return blocks(layer).num_blocks(); }
  std::int64_t expert_bytes(int layer) const override { return blocks(layer).expert_bytes(); }
  std::int64_t block_offset(int layer, int block) const override {
    return blocks(layer).block(block).offset;
  }
  std::int64_t block_bytes(int layer, int block) const override {
    return blocks(layer).block(block).bytes;
  }
  ExpertPart part(int layer, int block, const std::byte* block_bytes,
                  DeviceId device) const override {
    return blocks(layer).part(block, block_bytes, device);
  }

  const ModelConfig& config() const { return config_; }
  // The stored tensor `name`, or null. Scales are tensors of their own; packed experts are none.
  const StoredTensor* find(std::string_view name) const { return tensors_.find(name); }
  // As TensorFiles::check_finite().
  Status check_finite(std::string_view name, const StoredTensor& tensor, std::int64_t first,
                      std::span<const std::byte> bytes) const {
    return tensors_.check_finite(name, tensor, first, bytes);
  }
  const std::vector<ReadFile>& files() const { return tensors_.files(); }
  int num_tensors() const { return static_cast<int>(tensors_.all().size()); }
  // Whether the weights of a draft layer are there; config.json may promise what is not stored.
  bool has_draft_layer(int layer) const;

  // Layers with routed experts that are stored, ascending.
  std::vector<int> expert_layers() const;
  // How the experts of a MoE layer are stored.
  QuantSpec expert_spec(int layer) const;
  const quant::ExpertBlocks& blocks(int layer) const;

  // Stored bytes, scales included; ignored tensors do not count.
  const CategoryBytes& category_bytes() const { return category_bytes_; }
  std::int64_t total_bytes() const;
  // What is unusual and harmless, one sentence each, for the log.
  const std::vector<std::string>& notices() const { return notices_; }

 protected:
  struct LayerExperts {
    QuantSpec spec;
    quant::ExpertBlocks blocks;
  };
  explicit ModelSource(ModelConfig config)
      : config_(std::move(config)), experts_(config_.layers().size()) {}

  ModelConfig config_;
  TensorFiles tensors_;
  std::vector<std::optional<LayerExperts>> experts_;  // by layer
  CategoryBytes category_bytes_{};
  std::int64_t dense_bytes_ = 0;
  std::vector<std::string> notices_;
};

}  // namespace stoker::storage
