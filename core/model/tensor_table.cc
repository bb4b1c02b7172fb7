#include "core/model/tensor_table.h"

#include <fmt/format.h>

#include <bit>

namespace stoker {
namespace {

constexpr std::string_view kScaleSuffix = "_scale_inv";

class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {
    plain_ = config.stored_format == QuantFormat::kF8E4m3B128 ? QuantFormat::kBf16
                                                              : config.stored_format;
    // V3.2 publishes its norms in F32, V3 in the dtype of the other plain tensors.
    norm_ = config.model_type == ModelType::kDeepseekV32 ? QuantFormat::kF32 : plain_;
  }

  std::vector<TensorSpec> run() {
    const std::int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    category_ = TensorCategory::kEmbedding;
    plain("model.embed_tokens.weight", vocab, hidden);
    for (const LayerSpec& spec : config_.layers()) layer(spec);
    layer_ = -1;
    draft_ = false;
    category_ = TensorCategory::kNorms;
    norm("model.norm.weight", hidden);
    category_ = TensorCategory::kHead;
    plain("lm_head.weight", vocab, hidden);
    table_.back().optional = config_.tie_word_embeddings;
    return std::move(table_);
  }

 private:
  void add(std::string name, std::int64_t rows, std::int64_t cols, TensorKind kind,
           QuantFormat format) {
    TensorSpec spec;
    spec.name = std::move(name);
    spec.rows = rows;
    spec.cols = cols;
    spec.kind = kind;
    spec.category = draft_ ? TensorCategory::kMtp : category_;
    spec.format = format;
    spec.layer = layer_;
    table_.push_back(std::move(spec));
  }
  void linear(std::string name, std::int64_t rows, std::int64_t cols) {
    add(std::move(name), rows, cols, TensorKind::kLinear, config_.stored_format);
  }
  void plain(std::string name, std::int64_t rows, std::int64_t cols) {
    add(std::move(name), rows, cols, TensorKind::kPlain, plain_);
  }
  void norm(std::string name, std::int64_t size) {
    add(std::move(name), 1, size, TensorKind::kNorm, norm_);
  }

  void layer(const LayerSpec& spec) {
    const std::int64_t hidden = config_.hidden_size;
    const std::string prefix = layer_prefix(spec.index);
    layer_ = spec.index;
    draft_ = spec.role == LayerRole::kDraft;
    category_ = TensorCategory::kNorms;
    norm(prefix + "input_layernorm.weight", hidden);
    norm(prefix + "post_attention_layernorm.weight", hidden);
    attention(prefix + "self_attn.");
    if (spec.attention == AttentionKind::kMlaSparse) indexer(prefix + "self_attn.indexer.");
    if (spec.ffn == FfnKind::kDense) {
      category_ = TensorCategory::kDenseFfn;
      mlp(prefix + "mlp.", spec.ffn_width);
    } else {
      moe(prefix + "mlp.", spec);
    }
    if (draft_) draft(prefix);
  }

  void attention(const std::string& prefix) {
    const AttentionDims d = config_.attention_dims();
    const std::int64_t hidden = config_.hidden_size, q_rank = config_.q_lora_rank;
    const std::int64_t heads = d.num_heads;
    category_ = TensorCategory::kAttention;
    linear(prefix + "q_a_proj.weight", q_rank, hidden);
    linear(prefix + "q_b_proj.weight", heads * (d.nope_dim + d.rope_dim), q_rank);
    linear(prefix + "kv_a_proj_with_mqa.weight", d.latent_dim + d.rope_dim, hidden);
    linear(prefix + "kv_b_proj.weight", heads * (d.nope_dim + d.value_dim), d.latent_dim);
    linear(prefix + "o_proj.weight", hidden, heads * d.value_dim);
    category_ = TensorCategory::kNorms;
    norm(prefix + "q_a_layernorm.weight", q_rank);
    norm(prefix + "kv_a_layernorm.weight", d.latent_dim);
  }

  void indexer(const std::string& prefix) {
    const IndexerDims d = *config_.indexer_dims();
    category_ = TensorCategory::kIndexer;
    linear(prefix + "wq_b.weight", std::int64_t{d.num_heads} * d.head_dim, config_.q_lora_rank);
    linear(prefix + "wk.weight", d.head_dim, config_.hidden_size);
    add(prefix + "k_norm.weight", 1, d.head_dim, TensorKind::kNorm, QuantFormat::kF32);
    add(prefix + "k_norm.bias", 1, d.head_dim, TensorKind::kNorm, QuantFormat::kF32);
    plain(prefix + "weights_proj.weight", d.num_heads, config_.hidden_size);
  }

  void mlp(const std::string& prefix, std::int64_t width) {
    const std::int64_t hidden = config_.hidden_size;
    linear(prefix + "gate_proj.weight", width, hidden);
    linear(prefix + "up_proj.weight", width, hidden);
    linear(prefix + "down_proj.weight", hidden, width);
  }

  void moe(const std::string& prefix, const LayerSpec& spec) {
    const int experts = spec.router.num_experts;
    category_ = TensorCategory::kRouter;
    plain(prefix + "gate.weight", experts, config_.hidden_size);
    add(prefix + "gate.e_score_correction_bias", 1, experts, TensorKind::kRouterBias,
        QuantFormat::kF32);
    if (spec.shared_width > 0) {
      category_ = TensorCategory::kSharedExperts;
      mlp(prefix + "shared_experts.", spec.shared_width);
    }
    category_ = TensorCategory::kRoutedExperts;
    for (int expert = 0; expert < experts; ++expert) {
      mlp(fmt::format("{}experts.{}.", prefix, expert), spec.ffn_width);
      for (std::size_t i = table_.size() - 3; i < table_.size(); ++i) table_[i].expert = expert;
    }
  }

  void draft(const std::string& prefix) {
    const std::int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
    norm(prefix + "enorm.weight", hidden);
    norm(prefix + "hnorm.weight", hidden);
    norm(prefix + "shared_head.norm.weight", hidden);
    plain(prefix + "eh_proj.weight", hidden, 2 * hidden);
    for (const char* copy : {"embed_tokens.weight", "shared_head.head.weight"}) {
      plain(prefix + copy, vocab, hidden);
      table_.back().optional = true;
    }
  }

  const ModelConfig& config_;
  QuantFormat plain_, norm_;
  std::vector<TensorSpec> table_;
  TensorCategory category_ = TensorCategory::kEmbedding;
  int layer_ = -1;
  bool draft_ = false;
};

QuantView shape_of(std::int64_t rows, std::int64_t cols, const QuantSpec& spec) {
  QuantView view;
  view.rows = rows;
  view.cols = cols;
  view.spec = spec;
  return view;
}

}  // namespace

std::string_view tensor_category_name(TensorCategory category) {
  constexpr std::array<std::string_view, kNumTensorCategories> kNames = {
      "embedding", "attention",      "indexer",        "norms", "dense ffn",
      "router",    "shared experts", "routed experts", "head",  "mtp"};
  return kNames[static_cast<std::size_t>(category)];
}

std::int64_t TensorSpec::stored_bytes() const {
  return shape_of(rows, cols, QuantSpec{format}).stored_bytes();
}

std::vector<TensorSpec> tensor_table(const ModelConfig& config) {
  return TableBuilder(config).run();
}

std::string scale_name(std::string_view weight_name) {
  return std::string(weight_name).append(kScaleSuffix);
}

std::string_view weight_of_scale(std::string_view name) {
  return name.ends_with(kScaleSuffix) ? name.substr(0, name.size() - kScaleSuffix.size())
                                      : std::string_view{};
}

std::string layer_prefix(int layer) { return fmt::format("model.layers.{}.", layer); }

std::string expert_tensor_name(ExpertId id, std::string_view projection) {
  return fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", id.layer, id.expert, projection);
}

// The costs of a ModelConfig, counted from its table.

std::int64_t ModelConfig::kv_bytes_per_token(KvFormat format, const LayerSpec& layer) const {
  std::int64_t bytes = kv_matrix(format, latent_row(attention_dims())).row_bytes();
  if (layer.attention == AttentionKind::kMlaSparse) {
    bytes += kv_matrix(format, index_key_row(*indexer_dims())).row_bytes();
  }
  return bytes;
}

std::int64_t ModelConfig::kv_bytes_per_token(KvFormat format, LayerRole last) const {
  std::int64_t bytes = 0;
  for (const LayerSpec& layer : layers_) {
    if (layer.role == LayerRole::kDraft && last == LayerRole::kMain) continue;
    bytes += kv_bytes_per_token(format, layer);
  }
  return bytes;
}

Status ModelConfig::check_kv_format(KvFormat format) const {
  const auto dims = indexer_dims();
  if (format == KvFormat::kFp8 && dims && !std::has_single_bit(unsigned(dims->head_dim))) {
    return make_error(ErrorCode::kUnsupported,
                      "an fp8 cache rotates indexer keys by a Hadamard transform, which takes a "
                      "power of two; this model's index_head_dim is {}",
                      dims->head_dim);
  }
  return {};
}

std::int64_t ModelConfig::expert_bytes(const QuantSpec& spec) const {
  return 2 * shape_of(moe_intermediate_size, hidden_size, spec).stored_bytes() +
         shape_of(hidden_size, moe_intermediate_size, spec).stored_bytes();
}

std::int64_t ModelConfig::dense_bytes() const {
  std::int64_t bytes = 0;
  for (const TensorSpec& tensor : tensor_table(*this)) {
    const bool routed = tensor.category == TensorCategory::kRoutedExperts;
    if (!routed && tensor.category != TensorCategory::kMtp && !tensor.optional) {
      bytes += tensor.stored_bytes();
    }
  }
  return bytes;
}

std::int64_t ModelConfig::active_bytes(const QuantSpec& experts) const {
  const QuantFormat plain =
      stored_format == QuantFormat::kF8E4m3B128 ? QuantFormat::kBf16 : stored_format;
  const std::int64_t row = shape_of(1, hidden_size, QuantSpec{plain}).stored_bytes();
  // A tied table is read whole, as the head.
  const std::int64_t unread_rows = tie_word_embeddings ? 0 : vocab_size - 1;
  const std::int64_t moe_layers = num_hidden_layers - first_k_dense_replace;
  return dense_bytes() - unread_rows * row +
         moe_layers * num_experts_per_tok * expert_bytes(experts);
}

}  // namespace stoker
