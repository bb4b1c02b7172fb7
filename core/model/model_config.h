// ModelConfig: what a checkpoint's config.json says about the model, checked, and what follows from
// it: the layer table, the RoPE frequencies, the costs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/model/kv_format.h"
#include "core/model/layer_spec.h"
#include "core/tensor/quant_view.h"

namespace stoker {

enum class ModelType : std::uint8_t { kDeepseekV3, kDeepseekV32 };  // kDeepseekV32: with DSA

// YaRN parameters; `factor` 1 and the rest unused where the config scales nothing.
struct RopeScaling {
  bool yarn = false;
  double factor = 1.0;
  std::int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale_all_dim = 0.0;
};

// Comes out of parse() complete and free of contradictions, and is const from then on.
class ModelConfig {
 public:
  static constexpr std::size_t kMaxBytes = 16 << 20;  // of a config.json

  // `json` is the text of a config.json. Errors name the first field that is missing, of a wrong
  // type or at odds with another, with the values.
  static Result<ModelConfig> parse(std::string_view json);
  // Reads a config.json, or the one in a directory.
  static Result<ModelConfig> load(const std::filesystem::path& dir_or_file);

  // Fields of config.json under their own names. Every product of dimensions that the model forms
  // fits an int; byte counts fit an int64.
  ModelType model_type = ModelType::kDeepseekV3;
  int vocab_size = 0;
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int num_nextn_predict_layers = 0;
  int first_k_dense_replace = 0;
  int intermediate_size = 0;
  int moe_intermediate_size = 0;
  int n_routed_experts = 0;
  int n_shared_experts = 0;
  int num_experts_per_tok = 0;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  int num_attention_heads = 0;
  int q_lora_rank = 0;
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0;
  int qk_rope_head_dim = 0;
  int v_head_dim = 0;
  int index_n_heads = 0;  // 0 for deepseek_v3, like the next two
  int index_head_dim = 0;
  int index_topk = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  int max_position_embeddings = 0;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  TokenId bos_token_id = 0;
  std::vector<TokenId> eos_token_id;
  // The form linears are published in: fp8_e4m3_b128 with a quantization_config, else torch_dtype.
  // What a file really holds is said by the file.
  QuantFormat stored_format = QuantFormat::kBf16;

  // The layer table: num_hidden_layers main layers, then num_nextn_predict_layers draft layers.
  std::span<const LayerSpec> layers() const { return layers_; }
  AttentionDims attention_dims() const;
  std::optional<IndexerDims> indexer_dims() const;  // empty: attention is dense
  // Factor on q.k before the softmax, YaRN's temperature (mscale squared) included.
  double softmax_scale() const;
  // One frequency per pair of rope dimensions, [qk_rope_head_dim / 2]; YaRN applied where the
  // config says so, for every position and prompt length. The indexer uses the same.
  std::vector<float> rope_inv_freq() const;

  std::string_view model_type_name() const;

  // Costs (tensor_table.cc).

  // Cached bytes per position, over the main layers, or over all with `last` kDraft.
  std::int64_t kv_bytes_per_token(KvFormat format, LayerRole last = LayerRole::kMain) const;
  std::int64_t kv_bytes_per_token(KvFormat format, const LayerSpec& layer) const;
  // Whether this model's rows can be kept so.
  Status check_kv_format(KvFormat format) const;
  // One routed expert, scales included.
  std::int64_t expert_bytes(const QuantSpec& spec) const;
  std::int64_t expert_bytes() const { return expert_bytes(QuantSpec{stored_format}); }
  // Everything of the main model but the routed experts, as published.
  std::int64_t dense_bytes() const;
  // Weights that decoding one token reads, with routed experts in `experts`.
  std::int64_t active_bytes(const QuantSpec& experts) const;
  std::int64_t active_bytes() const { return active_bytes(QuantSpec{stored_format}); }

 private:
  ModelConfig() = default;
  friend class ConfigReader;

  std::vector<LayerSpec> layers_;
};

}  // namespace stoker
