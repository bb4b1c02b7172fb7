// generation_config.json: how a model's makers sample from it, and where an answer ends.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/model/model_config.h"

namespace stoker {

// What the file leaves out is as DeepSeek-V3.2 publishes it; token ids are the config's.
struct GenerationConfig {
  bool do_sample = true;  // false: greedy
  double temperature = 1.0;
  double top_p = 0.95;
  TokenId bos_token_id = 0;
  std::vector<TokenId> eos_token_id;  // any of them ends an answer; never empty

  static Result<GenerationConfig> parse(std::string_view json, const ModelConfig& config);
  // Reads generation_config.json of `dir`; a directory without one is no error.
  static Result<GenerationConfig> load(const std::filesystem::path& dir, const ModelConfig& config);
};

}  // namespace stoker
