#include "tests/support/published_configs.h"

#include <nlohmann/json.hpp>

#include "core/base/check.h"
#include "core/base/file.h"

namespace stoker::test {
namespace {

// As published; a file, so that `stoker synth --config` can take it too.
std::string published() {
  const Result<std::string> text =
      read_small_file(STOKER_SOURCE_DIR "/tests/data/deepseek_v32_config.json", 1 << 20);
  CHECK(text.ok(), "{}", text.error().message());
  return *text;
}

nlohmann::json without_indexer(nlohmann::json config) {
  config["model_type"] = "deepseek_v3";
  config["architectures"] = {"DeepseekV3ForCausalLM"};
  for (const char* field : {"index_head_dim", "index_n_heads", "index_topk"}) config.erase(field);
  config["quantization_config"].erase("scale_fmt");
  return config;
}

}  // namespace

std::string deepseek_v32_config() { return published(); }

std::string deepseek_v3_config() {
  return without_indexer(nlohmann::json::parse(published())).dump(1);
}

std::string tiny_config(std::string_view type, std::string_view dtype) {
  nlohmann::json config = nlohmann::json::parse(published());
  config.update({{"vocab_size", 96},
                 {"hidden_size", 136},
                 {"num_hidden_layers", 4},
                 {"intermediate_size", 160},
                 {"first_k_dense_replace", 1},
                 {"moe_intermediate_size", 40},
                 {"n_routed_experts", 12},
                 {"num_experts_per_tok", 3},
                 {"n_group", 3},
                 {"topk_group", 2},
                 {"num_attention_heads", 3},
                 {"num_key_value_heads", 3},
                 {"q_lora_rank", 72},
                 {"kv_lora_rank", 64},
                 {"qk_nope_head_dim", 24},
                 {"qk_rope_head_dim", 16},
                 {"v_head_dim", 20},
                 {"index_n_heads", 5},
                 {"index_head_dim", 32},
                 {"index_topk", 8},
                 {"num_nextn_predict_layers", 0},
                 {"max_position_embeddings", 1024}});
  config["rope_scaling"].update({{"factor", 8}, {"original_max_position_embeddings", 128}});
  if (type == "deepseek_v3") config = without_indexer(std::move(config));
  if (dtype != "fp8") {
    config.erase("quantization_config");
    config["torch_dtype"] = dtype == "f32" ? "float32" : dtype == "f16" ? "float16" : "bfloat16";
  }
  return config.dump(1);
}

std::string tiny_config_for_tensor_cores() {
  std::string config = tiny_config();
  for (const auto& [field, value] : {std::pair("num_attention_heads", "16"),
                                     {"num_key_value_heads", "16"},
                                     {"kv_lora_rank", "512"},
                                     {"qk_rope_head_dim", "64"},
                                     {"qk_nope_head_dim", "32"},
                                     {"v_head_dim", "32"},
                                     {"index_n_heads", "16"},
                                     {"index_head_dim", "128"},
                                     {"hidden_size", "2048"},
                                     {"q_lora_rank", "256"}}) {
    config = with_field(config, field, value);
  }
  return config;
}

std::string with_field(const std::string& config, std::string_view field, std::string_view value) {
  nlohmann::json document = nlohmann::json::parse(config);
  nlohmann::json* object = &document;
  std::string name(field);
  if (const std::size_t dot = name.find('.'); dot != std::string::npos) {
    object = &document[name.substr(0, dot)];
    name = name.substr(dot + 1);
  }
  CHECK(object->is_object(), "{}", field);
  if (value.empty()) {
    object->erase(name);
  } else {
    (*object)[name] = nlohmann::json::parse(value);
  }
  return document.dump(1);
}

}  // namespace stoker::test
