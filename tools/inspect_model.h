// What a model directory holds and what a token of it costs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/model/model_config.h"
#include "core/model/tensor_table.h"
#include "core/text/json_text.h"

namespace stoker::tools {

// A file of packed experts and where it was found.
struct ExpertFileReport {
  std::string path;
  std::int64_t bytes = 0;
  int copy = 0;  // 0, or the number of this copy of a mirrored file
};

struct ModelReport {
  std::string directory;
  ModelConfig config;
  bool packed = false;                 // a store, not a checkpoint
  std::string source_model{};          // of a store: what was packed
  int num_files = 0, num_tensors = 0;  // a packed expert is one tensor
  CategoryBytes bytes{};               // as stored
  std::int64_t total_bytes = 0;
  QuantSpec expert_spec{};  // as stored; this and the next two are meaningless without MoE layers
  std::int64_t slot_bytes = 0;                   // of an expert in memory
  std::vector<std::int64_t> block_bytes{};       // of its blocks, gate/up blocks first
  std::vector<ExpertFileReport> expert_files{};  // of a store
  std::vector<std::string> notices{};
};

// Reads config and headers, no weights. Everything that loading would check about them is checked.
// `expert_dirs`: as storage::open_model().
Result<ModelReport> inspect_model(const std::filesystem::path& directory,
                                  std::span<const std::filesystem::path> expert_dirs = {});

JsonValue model_to_json(const ModelReport& report);
std::string model_to_text(const ModelReport& report);

// "29.4 MiB".
std::string human_bytes(std::int64_t bytes);

}  // namespace stoker::tools
