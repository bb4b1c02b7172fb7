// Random checkpoints for tests: small, seeded, the same bytes on every machine, with weights scaled
// so that activations stay of order one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "tests/support/published_configs.h"
#include "tests/support/temp_dir.h"

namespace stoker::test {

struct TinyModelOptions {
  std::string config = tiny_config();  // its quantization_config or torch_dtype decides the dtypes
  std::uint64_t seed = 1;
  int shards = 1;
  bool power_of_two_scales = true;
  double router_bias_shift = 0.0;
  bool store_drafts = true;        // MTP layers, if the config has any
  bool store_draft_copies = true;  // their own embed_tokens and shared_head.head
};

// The values of tensor `spec` before they are rounded to its dtype, row-major. A draft layer's
// copies of embedding and head equal the main ones.
std::vector<float> tiny_tensor(const TensorSpec& spec, const TinyModelOptions& options);

// Writes config.json, generation_config.json and the weights to `dir`. Returns the parsed config.
ModelConfig write_tiny_model(const std::filesystem::path& dir, const TinyModelOptions& options);

// A tiny model in a directory of its own.
class TinyModel {
 public:
  explicit TinyModel(const TinyModelOptions& options = {})
      : config_(write_tiny_model(dir_.path(), options)) {}
  const std::filesystem::path& dir() const { return dir_.path(); }
  const ModelConfig& config() const { return config_; }

 private:
  TempDir dir_;
  ModelConfig config_;
};

}  // namespace stoker::test
