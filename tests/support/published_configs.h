// The config.json texts of published models, and edits of them.
#pragma once

#include <string>
#include <string_view>

namespace stoker::test {

// DeepSeek-V3.2 as published.
std::string deepseek_v32_config();
// DeepSeek-V3: the same dimensions without the indexer, scales of any value.
std::string deepseek_v3_config();
// A model of a few hundred kilobytes with every part: 4 layers (1 dense), 12 experts in 3 groups,
// DSA from the 9th token on, partial FP8 blocks. `type` is a model_type; `dtype` fp8, bf16, f16 or
// f32.
std::string tiny_config(std::string_view type = "deepseek_v32", std::string_view dtype = "fp8");
// The first of them with the dimensions that the tensor cores of GPUs take.
std::string tiny_config_for_tensor_cores();
// `config` with `field` (a dotted path) set to the JSON text `value`, or removed if that is empty.
std::string with_field(const std::string& config, std::string_view field, std::string_view value);

}  // namespace stoker::test
