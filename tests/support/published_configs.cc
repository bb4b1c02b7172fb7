#include "tests/support/published_configs.h"

#include <nlohmann/json.hpp>

#include "core/base/check.h"

namespace stoker::test {
namespace {

constexpr const char* kDeepseekV32 = R"({
  "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
  "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
  "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
  "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048, "initializer_range": 0.02,
  "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
  "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
  "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
  "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
  "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                   "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                   "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
  "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
  "torch_dtype": "bfloat16", "transformers_version": "4.44.2", "use_cache": true,
  "v_head_dim": 128, "vocab_size": 129280
})";

nlohmann::json without_indexer(nlohmann::json config) {
  config["model_type"] = "deepseek_v3";
  config["architectures"] = {"DeepseekV3ForCausalLM"};
  for (const char* field : {"index_head_dim", "index_n_heads", "index_topk"}) config.erase(field);
  config["quantization_config"].erase("scale_fmt");
  return config;
}

}  // namespace

std::string deepseek_v32_config() { return kDeepseekV32; }

std::string deepseek_v3_config() {
  return without_indexer(nlohmann::json::parse(kDeepseekV32)).dump(1);
}

std::string tiny_config(std::string_view type, std::string_view dtype) {
  nlohmann::json config = nlohmann::json::parse(kDeepseekV32);
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
