// What a model directory holds and what a token of it costs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "core/text/json_text.h"

namespace stoker::tools {

struct ModelReport {
  std::string directory;
  ModelConfig config;
  int num_files = 0, num_tensors = 0;
  CategoryBytes bytes{};  // as stored
  std::int64_t total_bytes = 0;
  QuantSpec expert_spec;  // as stored; meaningless without MoE layers
  std::vector<std::string> notices;
};

// Reads config and headers, no weights. Everything that loading would check about them is checked.
Result<ModelReport> inspect_model(const std::filesystem::path& directory);

JsonValue model_to_json(const ModelReport& report);
std::string model_to_text(const ModelReport& report);

// "29.4 MiB".
std::string human_bytes(std::int64_t bytes);

}  // namespace stoker::tools
