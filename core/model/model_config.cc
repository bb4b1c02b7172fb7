#include "core/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/file.h"
#include "core/model/json_fields.h"

namespace stoker {
namespace {

// Limits that keep every product of dimensions inside an int and every byte count inside an int64,
// far above any model.
constexpr std::int64_t kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxHeads = 1 << 13;
constexpr std::int64_t kMaxHeadDim = 1 << 14;
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxExperts = 1 << 16;
constexpr std::int64_t kMaxRoutedExperts = 1 << 20;  // of all layers together
constexpr double kMaxParameters = 1e15;
constexpr double kMinRopeTheta = 1.5, kMaxRopeTheta = 1e12;  // its logarithm divides

Error contradiction(std::string message) {
  return Error(ErrorCode::kInvalidArgument, std::move(message));
}

Error unsupported(std::string message) {
  return Error(ErrorCode::kUnsupported, std::move(message));
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

// Turns a parsed document into a ModelConfig.
class ConfigReader {
 public:
  explicit ConfigReader(const nlohmann::json& document) : in_(document) {}

  Result<ModelConfig> run() {
    RETURN_IF_ERROR(read_model_type());
    read_dimensions();
    read_experts();
    read_indexer();
    read_token_ids();
    read_switches();
    RETURN_IF_ERROR(in_.status());
    RETURN_IF_ERROR(read_rope());
    RETURN_IF_ERROR(read_stored_format());
    RETURN_IF_ERROR(check_experts());
    RETURN_IF_ERROR(check_attention());
    RETURN_IF_ERROR(check_size());
    build_layers();
    return std::move(config_);
  }

 private:
  Status read_model_type();
  void read_dimensions();
  void read_experts();
  void read_indexer();
  void read_token_ids();
  void read_switches();
  Status read_rope();
  Status read_yarn(JsonFields& rope);
  Status read_stored_format();
  Status check_experts() const;
  Status check_attention() const;
  Status check_size() const;
  void build_layers();

  int dim(std::string_view name, std::int64_t max, std::int64_t min = 1,
          std::optional<std::int64_t> fallback = {}) {
    return static_cast<int>(in_.integer(name, min, max, fallback));
  }
  // A field for which one value is known.
  void expect(std::string_view name, std::string_view only) {
    const std::string value = in_.text(name, std::string(only));
    if (value != only) {
      in_.fail(unsupported(
          fmt::format("{} \"{}\" is not supported; supported: \"{}\"", name, value, only)));
    }
  }

  JsonFields in_;
  ModelConfig config_;
};

Status ConfigReader::read_model_type() {
  const std::string type = in_.text("model_type");
  RETURN_IF_ERROR(in_.status());
  if (type == "deepseek_v3") {
    config_.model_type = ModelType::kDeepseekV3;
  } else if (type == "deepseek_v32") {
    config_.model_type = ModelType::kDeepseekV32;
  } else {
    return unsupported(
        fmt::format("model_type \"{}\" is not supported; supported: deepseek_v32 (V3.2, V3.2-Exp, "
                    "V3.2-Speciale), deepseek_v3 (V3, R1, V3.1)",
                    type));
  }
  return {};
}

void ConfigReader::read_dimensions() {
  config_.vocab_size = dim("vocab_size", kMaxWidth);
  config_.hidden_size = dim("hidden_size", kMaxWidth);
  config_.num_hidden_layers = dim("num_hidden_layers", kMaxLayers);
  config_.num_nextn_predict_layers = dim("num_nextn_predict_layers", 16, 0, 0);
  config_.intermediate_size = dim("intermediate_size", kMaxWidth);
  config_.num_attention_heads = dim("num_attention_heads", kMaxHeads);
  config_.q_lora_rank = dim("q_lora_rank", kMaxWidth);
  config_.kv_lora_rank = dim("kv_lora_rank", kMaxWidth);
  config_.qk_nope_head_dim = dim("qk_nope_head_dim", kMaxHeadDim);
  config_.qk_rope_head_dim = dim("qk_rope_head_dim", kMaxHeadDim);
  config_.v_head_dim = dim("v_head_dim", kMaxHeadDim);
  config_.max_position_embeddings = dim("max_position_embeddings", 1 << 30, 1, 4096);
  config_.rms_norm_eps = in_.positive("rms_norm_eps", 1.0, 1e-6);
}

void ConfigReader::read_experts() {
  config_.moe_intermediate_size = dim("moe_intermediate_size", kMaxWidth);
  config_.n_routed_experts = dim("n_routed_experts", kMaxExperts);
  config_.n_shared_experts = dim("n_shared_experts", 64, 0, 0);
  config_.num_experts_per_tok = dim("num_experts_per_tok", kMaxExperts);
  config_.n_group = dim("n_group", kMaxExperts, 1, 1);
  config_.topk_group = dim("topk_group", kMaxExperts, 1, 1);
  config_.first_k_dense_replace = dim("first_k_dense_replace", INT32_MAX, 0, 0);
  config_.norm_topk_prob = in_.boolean("norm_topk_prob", true);
  config_.routed_scaling_factor = in_.positive("routed_scaling_factor", 1e6, 1.0);
  expect("scoring_func", "sigmoid");
  expect("topk_method", "noaux_tc");
  if (const int frequency = dim("moe_layer_freq", INT32_MAX, 1, 1); frequency != 1) {
    in_.fail(
        unsupported(fmt::format("moe_layer_freq {} is not supported; supported: 1", frequency)));
  }
}

void ConfigReader::read_indexer() {
  if (config_.model_type != ModelType::kDeepseekV32) return;
  config_.index_n_heads = dim("index_n_heads", kMaxHeads);
  config_.index_head_dim = dim("index_head_dim", kMaxHeadDim);
  config_.index_topk = dim("index_topk", 1 << 30);
}

void ConfigReader::read_token_ids() {
  const std::int64_t last = config_.vocab_size - 1;
  config_.bos_token_id = static_cast<TokenId>(in_.integer("bos_token_id", 0, last, 0));
  for (const std::int64_t id : in_.integers("eos_token_id", 0, last, {1})) {
    config_.eos_token_id.push_back(static_cast<TokenId>(id));
  }
}

void ConfigReader::read_switches() {
  expect("hidden_act", "silu");
  config_.tie_word_embeddings = in_.boolean("tie_word_embeddings", false);
  if (in_.boolean("attention_bias", false)) {
    in_.fail(unsupported("attention_bias true is not supported; supported: false"));
  }
}

Status ConfigReader::read_rope() {
  // Newer writers keep theta and scaling together in rope_parameters.
  const nlohmann::json* scaling = in_.find("rope_scaling");
  const nlohmann::json* parameters = in_.find("rope_parameters");
  if (scaling == nullptr) scaling = parameters;
  for (const nlohmann::json* object : {scaling, parameters}) {
    if (object != nullptr && !object->is_object()) {
      return contradiction(fmt::format("{} must be an object or null, is {}",
                                       object == parameters ? "rope_parameters" : "rope_scaling",
                                       shown(*object)));
    }
  }
  if (in_.find("rope_theta") == nullptr && parameters != nullptr) {
    JsonFields nested(*parameters, "rope_parameters.");
    config_.rope_theta = nested.number("rope_theta", kMinRopeTheta, kMaxRopeTheta, 10000.0);
    RETURN_IF_ERROR(nested.status());
  } else {
    config_.rope_theta = in_.number("rope_theta", kMinRopeTheta, kMaxRopeTheta, 10000.0);
    RETURN_IF_ERROR(in_.status());
  }
  if (scaling == nullptr) return {};
  JsonFields rope(*scaling, scaling == parameters ? "rope_parameters." : "rope_scaling.");
  return read_yarn(rope);
}

Status ConfigReader::read_yarn(JsonFields& rope) {
  const std::string type = rope.text(rope.find("type") != nullptr ? "type" : "rope_type");
  RETURN_IF_ERROR(rope.status());
  if (type == "default") return {};
  if (type != "yarn") {
    return unsupported(fmt::format(
        "rope_scaling.type \"{}\" is not supported; supported: \"yarn\", or rope_scaling "
        "null",
        type));
  }
  RopeScaling& yarn = config_.rope_scaling;
  yarn.yarn = true;
  yarn.factor = rope.number("factor", 1.0, 1e6);
  yarn.original_max_position_embeddings =
      rope.integer("original_max_position_embeddings", 1, 1 << 30, config_.max_position_embeddings);
  yarn.beta_fast = rope.positive("beta_fast", 1e6, 32.0);
  yarn.beta_slow = rope.positive("beta_slow", 1e6, 1.0);
  const double mscale = rope.number("mscale", 0.0, 1e3, 0.0);
  yarn.mscale_all_dim = rope.number("mscale_all_dim", 0.0, 1e3, 0.0);
  RETURN_IF_ERROR(rope.status());
  if (yarn.beta_slow > yarn.beta_fast) {
    return contradiction(fmt::format("rope_scaling.beta_slow {} exceeds beta_fast {}",
                                     yarn.beta_slow, yarn.beta_fast));
  }
  // Unequal values, or none, would scale cos and sin; no published checkpoint of the family does.
  if (yarn.factor > 1.0 && (mscale != yarn.mscale_all_dim || mscale == 0.0)) {
    return unsupported(
        fmt::format("rope_scaling.mscale {} with mscale_all_dim {} is not supported; supported: "
                    "both given and equal",
                    mscale, yarn.mscale_all_dim));
  }
  return {};
}

Status ConfigReader::read_stored_format() {
  const nlohmann::json* quantisation = in_.find("quantization_config");
  if (quantisation == nullptr) {
    const bool new_name = in_.find("torch_dtype") == nullptr && in_.find("dtype") != nullptr;
    const std::string dtype = in_.text(new_name ? "dtype" : "torch_dtype", "bfloat16");
    RETURN_IF_ERROR(in_.status());
    if (dtype == "bfloat16") {
      config_.stored_format = QuantFormat::kBf16;
    } else if (dtype == "float16") {
      config_.stored_format = QuantFormat::kF16;
    } else if (dtype == "float32") {
      config_.stored_format = QuantFormat::kF32;
    } else {
      return unsupported(fmt::format(
          "torch_dtype \"{}\" is not supported; supported: bfloat16, float16, float32", dtype));
    }
    return {};
  }
  if (!quantisation->is_object()) {
    return contradiction(
        fmt::format("quantization_config must be an object or null, is {}", shown(*quantisation)));
  }
  JsonFields quant(*quantisation, "quantization_config.");
  const std::string method = quant.text("quant_method");
  const std::string format = quant.text("fmt", "e4m3");
  RETURN_IF_ERROR(quant.status());
  const nlohmann::json* block = quant.find("weight_block_size");
  if (method != "fp8" || format != "e4m3" || block == nullptr ||
      *block != nlohmann::json::array({128, 128})) {
    return unsupported(fmt::format(
        "quantization_config with quant_method \"{}\", fmt \"{}\", weight_block_size {} "
        "is not supported; supported: fp8, e4m3, [128,128]",
        method, format, block == nullptr ? "missing" : shown(*block)));
  }
  config_.stored_format = QuantFormat::kF8E4m3B128;
  return {};
}

Status ConfigReader::check_experts() const {
  const ModelConfig& c = config_;
  if (c.first_k_dense_replace > c.num_hidden_layers) {
    return contradiction(fmt::format("first_k_dense_replace {} exceeds num_hidden_layers {}",
                                     c.first_k_dense_replace, c.num_hidden_layers));
  }
  if (c.num_experts_per_tok > c.n_routed_experts) {
    return contradiction(fmt::format("num_experts_per_tok {} exceeds n_routed_experts {}",
                                     c.num_experts_per_tok, c.n_routed_experts));
  }
  if (c.n_routed_experts % c.n_group != 0) {
    return contradiction(fmt::format("n_routed_experts {} is not divisible by n_group {}",
                                     c.n_routed_experts, c.n_group));
  }
  if (c.topk_group > c.n_group) {
    return contradiction(fmt::format("topk_group {} exceeds n_group {}", c.topk_group, c.n_group));
  }
  const int group_size = c.n_routed_experts / c.n_group;
  if (c.num_experts_per_tok > c.topk_group * group_size) {
    return contradiction(
        fmt::format("num_experts_per_tok {} exceeds the {} experts of topk_group {} groups of {}",
                    c.num_experts_per_tok, c.topk_group * group_size, c.topk_group, group_size));
  }
  return {};
}

Status ConfigReader::check_attention() const {
  const ModelConfig& c = config_;
  if (c.qk_rope_head_dim % 2 != 0) {
    return contradiction(fmt::format("qk_rope_head_dim must be even, is {}", c.qk_rope_head_dim));
  }
  if (c.indexer_dims() && c.index_head_dim < c.qk_rope_head_dim) {
    return contradiction(fmt::format("index_head_dim {} is smaller than qk_rope_head_dim {}",
                                     c.index_head_dim, c.qk_rope_head_dim));
  }
  return {};
}

Status ConfigReader::check_size() const {
  const ModelConfig& c = config_;
  const double hidden = c.hidden_size, heads = c.num_attention_heads;
  const double layers = c.num_hidden_layers + c.num_nextn_predict_layers;
  const double experts = layers * c.n_routed_experts;
  if (experts > kMaxRoutedExperts) {
    return contradiction(fmt::format("{} layers of {} experts are more than {} experts in all",
                                     layers, c.n_routed_experts, kMaxRoutedExperts));
  }
  if (double(c.n_shared_experts) * c.moe_intermediate_size > kMaxWidth) {
    return contradiction(
        fmt::format("n_shared_experts {} times moe_intermediate_size {} exceeds {}",
                    c.n_shared_experts, c.moe_intermediate_size, kMaxWidth));
  }
  const double head_dims = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim);
  const double attention =
      hidden * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim + heads * c.v_head_dim) +
      head_dims * (double(c.q_lora_rank) + c.kv_lora_rank);
  const double indexer = double(c.index_n_heads) * c.index_head_dim * c.q_lora_rank +
                         hidden * (c.index_head_dim + c.index_n_heads);
  const double ffn = 3.0 * hidden * c.intermediate_size;
  const double routed = 3.0 * hidden * c.moe_intermediate_size;
  const double drafts = c.num_nextn_predict_layers * (2.0 * hidden + 2.0 * c.vocab_size) * hidden;
  const double parameters = layers * (attention + indexer + ffn + c.n_shared_experts * routed) +
                            experts * routed + 2.0 * c.vocab_size * hidden + drafts;
  if (parameters > kMaxParameters) {
    return contradiction(fmt::format(
        "the dimensions make {:.3g} parameters, more than the {:.0g} that any model has",
        parameters, kMaxParameters));
  }
  return {};
}

void ConfigReader::build_layers() {
  const ModelConfig& c = config_;
  const int total = c.num_hidden_layers + c.num_nextn_predict_layers;
  for (int index = 0; index < total; ++index) {
    LayerSpec spec;
    spec.index = index;
    spec.role = index < c.num_hidden_layers ? LayerRole::kMain : LayerRole::kDraft;
    spec.attention = c.model_type == ModelType::kDeepseekV32 ? AttentionKind::kMlaSparse
                                                             : AttentionKind::kMlaDense;
    spec.selection_from = index;
    if (index < c.first_k_dense_replace) {
      spec.ffn = FfnKind::kDense;
      spec.ffn_width = c.intermediate_size;
    } else {
      spec.ffn = FfnKind::kMoe;
      spec.ffn_width = c.moe_intermediate_size;
      spec.shared_width = c.moe_intermediate_size * c.n_shared_experts;
      spec.router = RouterSpec{c.n_routed_experts, c.num_experts_per_tok,
                               c.n_group,          c.topk_group,
                               c.norm_topk_prob,   static_cast<float>(c.routed_scaling_factor)};
    }
    config_.layers_.push_back(spec);
  }
}

Result<ModelConfig> ModelConfig::parse(std::string_view json) {
  if (json.size() > ModelConfig::kMaxBytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{} bytes are too many for a config (at most {})", json.size(),
                      ModelConfig::kMaxBytes);
  }
  ASSIGN_OR_RETURN(const nlohmann::json document, parse_json_object(json));
  return ConfigReader(document).run();
}

Result<ModelConfig> ModelConfig::load(const std::filesystem::path& dir_or_file) {
  std::error_code ignored;
  const std::filesystem::path path = std::filesystem::is_directory(dir_or_file, ignored)
                                         ? dir_or_file / "config.json"
                                         : dir_or_file;
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, ModelConfig::kMaxBytes));
  ASSIGN_OR_RETURN(ModelConfig config, parse(text), "{}", path.string());
  return config;
}

AttentionDims ModelConfig::attention_dims() const {
  return AttentionDims{num_attention_heads, qk_nope_head_dim, qk_rope_head_dim,
                       v_head_dim,          kv_lora_rank,     static_cast<float>(softmax_scale())};
}

std::optional<IndexerDims> ModelConfig::indexer_dims() const {
  if (model_type != ModelType::kDeepseekV32) return std::nullopt;
  return IndexerDims{index_n_heads, index_head_dim, index_topk};
}

double ModelConfig::softmax_scale() const {
  const double scale = 1.0 / std::sqrt(double(qk_nope_head_dim + qk_rope_head_dim));
  if (!rope_scaling.yarn) return scale;
  const double mscale = yarn_mscale(rope_scaling.factor, rope_scaling.mscale_all_dim);
  return scale * mscale * mscale;
}

std::vector<float> ModelConfig::rope_inv_freq() const {
  const int pairs = qk_rope_head_dim / 2;
  const double dims = qk_rope_head_dim;
  // The dimension at which `rotations` full turns fit into the original context.
  const auto correction_dim = [&](double rotations) {
    return dims *
           std::log(double(rope_scaling.original_max_position_embeddings) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope_theta));
  };
  double low = 0.0, high = 0.0;
  if (rope_scaling.yarn) {
    low = std::max(std::floor(correction_dim(rope_scaling.beta_fast)), 0.0);
    high = std::min(std::ceil(correction_dim(rope_scaling.beta_slow)), dims - 1.0);
    if (low == high) high += 0.001;  // the published code's guard against division by zero
  }
  std::vector<float> frequencies(pairs);
  for (int i = 0; i < pairs; ++i) {
    double frequency = std::pow(rope_theta, -2.0 * i / dims);
    if (rope_scaling.yarn) {
      const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
      frequency = frequency / rope_scaling.factor * ramp + frequency * (1.0 - ramp);
    }
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

std::string_view ModelConfig::model_type_name() const {
  return model_type == ModelType::kDeepseekV32 ? "deepseek_v32" : "deepseek_v3";
}

}  // namespace stoker
