#include "core/runtime/workspace.h"

#include <algorithm>

namespace stoker {
namespace {

constexpr int kPartsAtOnce = 256;

struct Widths {
  std::int64_t ffn = 0;
  int top_k = 1, num_experts = 1, moe = 0;
};

Widths widths_of(const ModelConfig& config) {
  Widths widths;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role != LayerRole::kMain) continue;
    widths.ffn = std::max<std::int64_t>(
        widths.ffn, spec.ffn == FfnKind::kDense ? spec.ffn_width : spec.shared_width);
    if (spec.ffn != FfnKind::kMoe) continue;
    widths.top_k = std::max(widths.top_k, spec.router.top_k);
    widths.num_experts = std::max(widths.num_experts, spec.router.num_experts);
    widths.moe = std::max(widths.moe, spec.ffn_width);
  }
  return widths;
}

// One tensor of a workspace.
struct Wish {
  Tensor Workspace::* tensor;
  DType dtype;
  std::int64_t rows, cols;
  bool on_host;
};

// Everything a workspace holds: what is allocated and what is counted.
std::vector<Wish> wishes_of(const ModelConfig& config, DType act, WorkspaceLimits limits) {
  using W = Workspace;
  const Widths widths = widths_of(config);
  const AttentionDims at = config.attention_dims();
  const std::int64_t rows = limits.max_rows, slots = rows * widths.top_k,
                     hidden = config.hidden_size, heads = at.num_heads;
  std::vector<Wish> wishes = {
      {&W::h, act, rows, hidden, false},
      {&W::residual, act, rows, hidden, false},
      {&W::normed, act, rows, hidden, false},
      {&W::q_latent, act, rows, config.q_lora_rank, false},
      {&W::q, act, rows, heads * (at.nope_dim + at.rope_dim), false},
      {&W::kv_a, act, rows, at.latent_dim + at.rope_dim, false},
      {&W::attention, act, rows, heads * at.value_dim, false},
      {&W::ffn_gate, act, rows, widths.ffn, false},
      {&W::ffn_up, act, rows, widths.ffn, false},
      {&W::shared_out, act, rows, hidden, false},
      {&W::router_logits, DType::kF32, rows, widths.num_experts, false},
      {&W::expert_hidden, act, slots, widths.moe, false},
      {&W::expert_out, act, slots, hidden, false},
      {&W::look_ahead, act, rows, hidden, false},
      {&W::logit_hidden, act, limits.max_logit_rows, hidden, false},
      {&W::logits, DType::kF32, limits.max_logit_rows, config.vocab_size, false},
      {&W::route_experts, DType::kI32, rows, widths.top_k, true},
      {&W::route_weights, DType::kF32, rows, widths.top_k, true},
      {&W::guessed_experts, DType::kI32, kMaxLead * rows, kMaxRankedGuesses, true},
      {&W::guessed_weights, DType::kF32, kMaxLead * rows, kMaxRankedGuesses, true},
      {&W::host_logits, DType::kF32, limits.max_logit_rows, config.vocab_size, true},
  };
  if (const auto dims = config.indexer_dims()) {
    const std::vector<Wish> indexer = {
        {&W::index_q, act, rows, std::int64_t{dims->num_heads} * dims->head_dim, false},
        {&W::index_k, act, rows, dims->head_dim, false},
        {&W::index_weights, DType::kF32, rows, dims->num_heads, false},
        {&W::selected, DType::kI32, rows, dims->top_k, false},
        {&W::selected_counts, DType::kI32, rows, 1, false},
        {&W::host_selected, DType::kI32, rows, dims->top_k, true},
        {&W::host_counts, DType::kI32, rows, 1, true},
    };
    wishes.insert(wishes.end(), indexer.begin(), indexer.end());
  }
  return wishes;
}

}  // namespace

std::int64_t Workspace::bytes_needed(const ModelConfig& config, DType activations,
                                     WorkspaceLimits limits) {
  std::int64_t total = 0;
  for (const Wish& wish : wishes_of(config, activations, limits)) {
    total += wish.rows * wish.cols * dtype_bytes(wish.dtype);
  }
  return total;
}

Result<std::unique_ptr<Workspace>> Workspace::create(const ModelConfig& config, Backend& backend,
                                                     WorkspaceLimits limits) {
  CHECK(limits.max_rows > 0 && limits.max_logit_rows > 0, "{} rows, {} logit rows", limits.max_rows,
        limits.max_logit_rows);
  auto w = std::make_unique<Workspace>();
  w->limits = limits;
  const Widths widths = widths_of(config);
  for (const Wish& wish : wishes_of(config, backend.activation_dtype(), limits)) {
    if (wish.cols == 0) continue;  // a model without that part
    ASSIGN_OR_RETURN((*w).*wish.tensor,
                     wish.on_host ? backend.allocate_host(wish.dtype, wish.rows, wish.cols)
                                  : backend.allocate(wish.dtype, wish.rows, wish.cols),
                     "reserving activations");
  }
  w->bytes = bytes_needed(config, backend.activation_dtype(), limits);
  w->plan = ExpertPlan(limits.max_rows, widths.top_k, widths.num_experts);
  w->parts.resize(kPartsAtOnce);
  return w;
}

}  // namespace stoker
