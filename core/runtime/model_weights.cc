#include "core/runtime/model_weights.h"

#include <fmt/format.h>

namespace stoker {
namespace {

// Reads, adopts and counts. One per load.
class Loader {
 public:
  Loader(const ModelConfig& config, const WeightSource& source, const Placement& placement,
         const ProgressFn& progress)
      : config_(config), source_(source), placement_(placement), progress_(progress) {}

  Result<ModelWeights> run();

 private:
  enum class Form { kLinear, kEmbedding };

  Result<WeightPtr> matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                           Form form = Form::kLinear) {
    ASSIGN_OR_RETURN(const HostWeight host, source_.read(name, rows, cols));
    ASSIGN_OR_RETURN(WeightPtr weight,
                     form == Form::kEmbedding ? backend_->adopt_embedding(host.view)
                                              : backend_->adopt(host.view),
                     "{}", name);
    count(host.view.stored_bytes());
    return weight;
  }

  Result<Tensor> vector(const std::string& name, std::int64_t size) {
    ASSIGN_OR_RETURN(const HostWeight host, source_.read(name, 1, size));
    const DType dtype = host.view.spec.format == QuantFormat::kBf16  ? DType::kBf16
                        : host.view.spec.format == QuantFormat::kF16 ? DType::kF16
                                                                     : DType::kF32;
    const TensorView view = make_view(const_cast<std::byte*>(host.view.payload), dtype, 1, size);
    ASSIGN_OR_RETURN(Tensor tensor, backend_->adopt_vector(view), "{}", name);
    count(host.view.stored_bytes());
    return tensor;
  }

  Status attention(const std::string& prefix, const LayerSpec& spec, LayerWeights& layer);
  Status indexer(const std::string& prefix, IndexerWeights& weights);
  Status ffn(const std::string& prefix, const LayerSpec& spec, LayerWeights& layer);

  void count(std::int64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const ModelConfig& config_;
  const WeightSource& source_;
  const Placement& placement_;
  Backend* backend_ = nullptr;  // that what is read now goes to
  const ProgressFn& progress_;
  std::int64_t done_ = 0;
  std::int64_t total_ = 0;
};

Status Loader::attention(const std::string& prefix, const LayerSpec& spec, LayerWeights& layer) {
  const AttentionDims dims = config_.attention_dims();
  const std::int64_t hidden = config_.hidden_size, q_rank = config_.q_lora_rank;
  const std::int64_t heads = dims.num_heads;
  const std::string p = prefix + "self_attn.";
  ASSIGN_OR_RETURN(layer.q_a, matrix(p + "q_a_proj.weight", q_rank, hidden));
  ASSIGN_OR_RETURN(layer.q_a_norm, vector(p + "q_a_layernorm.weight", q_rank));
  ASSIGN_OR_RETURN(layer.q_b,
                   matrix(p + "q_b_proj.weight", heads * (dims.nope_dim + dims.rope_dim), q_rank));
  ASSIGN_OR_RETURN(
      layer.kv_a, matrix(p + "kv_a_proj_with_mqa.weight", dims.latent_dim + dims.rope_dim, hidden));
  ASSIGN_OR_RETURN(layer.kv_a_norm, vector(p + "kv_a_layernorm.weight", dims.latent_dim));
  const std::string kv_b = p + "kv_b_proj.weight";
  ASSIGN_OR_RETURN(const HostWeight host,
                   source_.read(kv_b, heads * (dims.nope_dim + dims.value_dim), dims.latent_dim));
  ASSIGN_OR_RETURN(layer.kv_b, backend_->adopt_kv_b(host.view, dims), "{}", kv_b);
  count(host.view.stored_bytes());
  ASSIGN_OR_RETURN(layer.o, matrix(p + "o_proj.weight", hidden, heads * dims.value_dim));
  if (spec.attention == AttentionKind::kMlaSparse)
    RETURN_IF_ERROR(indexer(p + "indexer.", layer.indexer));
  return {};
}

Status Loader::indexer(const std::string& prefix, IndexerWeights& weights) {
  const IndexerDims dims = *config_.indexer_dims();
  ASSIGN_OR_RETURN(weights.queries,
                   matrix(prefix + "wq_b.weight", std::int64_t{dims.num_heads} * dims.head_dim,
                          config_.q_lora_rank));
  ASSIGN_OR_RETURN(weights.key, matrix(prefix + "wk.weight", dims.head_dim, config_.hidden_size));
  ASSIGN_OR_RETURN(weights.key_norm_weight, vector(prefix + "k_norm.weight", dims.head_dim));
  ASSIGN_OR_RETURN(weights.key_norm_bias, vector(prefix + "k_norm.bias", dims.head_dim));
  ASSIGN_OR_RETURN(weights.head_weights,
                   matrix(prefix + "weights_proj.weight", dims.num_heads, config_.hidden_size));
  return {};
}

Status Loader::ffn(const std::string& prefix, const LayerSpec& spec, LayerWeights& layer) {
  const std::int64_t hidden = config_.hidden_size;
  std::string p = prefix + "mlp.";
  std::int64_t width = spec.ffn_width;
  if (spec.ffn == FfnKind::kMoe) {
    const std::int64_t experts = spec.router.num_experts;
    ASSIGN_OR_RETURN(layer.router, matrix(p + "gate.weight", experts, hidden));
    ASSIGN_OR_RETURN(layer.router_bias, vector(p + "gate.e_score_correction_bias", experts));
    if (spec.shared_width == 0) return {};
    p += "shared_experts.";
    width = spec.shared_width;
  }
  ASSIGN_OR_RETURN(layer.gate, matrix(p + "gate_proj.weight", width, hidden));
  ASSIGN_OR_RETURN(layer.up, matrix(p + "up_proj.weight", width, hidden));
  ASSIGN_OR_RETURN(layer.down, matrix(p + "down_proj.weight", hidden, width));
  return {};
}

Result<ModelWeights> Loader::run() {
  total_ = source_.dense_bytes();
  ModelWeights weights;
  const std::int64_t vocab = config_.vocab_size, hidden = config_.hidden_size;
  const std::string embedding = "model.embed_tokens.weight";
  backend_ = &placement_.dense(0);
  ASSIGN_OR_RETURN(weights.embedding, matrix(embedding, vocab, hidden, Form::kEmbedding));
  backend_ = &placement_.dense(placement_.num_layers() - 1);
  ASSIGN_OR_RETURN(weights.head, matrix(config_.tie_word_embeddings ? embedding : "lm_head.weight",
                                        vocab, hidden));
  ASSIGN_OR_RETURN(weights.final_norm, vector("model.norm.weight", hidden));
  for (const LayerSpec& spec : config_.layers()) {
    if (spec.role != LayerRole::kMain) continue;
    const std::string prefix = fmt::format("model.layers.{}.", spec.index);
    backend_ = &placement_.dense(static_cast<int>(weights.layers.size()));
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, vector(prefix + "input_layernorm.weight", hidden));
    ASSIGN_OR_RETURN(layer.post_attention_norm,
                     vector(prefix + "post_attention_layernorm.weight", hidden));
    RETURN_IF_ERROR(attention(prefix, spec, layer));
    RETURN_IF_ERROR(ffn(prefix, spec, layer));
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace

Result<ModelWeights> load_weights(const ModelConfig& config, const WeightSource& source,
                                  const Placement& placement, const ProgressFn& progress) {
  return Loader(config, source, placement, progress).run();
}

}  // namespace stoker
