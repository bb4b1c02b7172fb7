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

}  // namespace

Result<std::unique_ptr<Workspace>> Workspace::create(const ModelConfig& config, Backend& backend,
                                                     WorkspaceLimits limits) {
  CHECK(limits.max_rows > 0 && limits.max_logit_rows > 0, "{} rows, {} logit rows", limits.max_rows,
        limits.max_logit_rows);
  auto w = std::make_unique<Workspace>();
  w->limits = limits;
  const Widths widths = widths_of(config);
  const AttentionDims at = config.attention_dims();
  const DType act = backend.activation_dtype();
  const std::int64_t rows = limits.max_rows, slots = rows * widths.top_k,
                     hidden = config.hidden_size;

  struct Wish {
    Tensor* tensor;
    DType dtype;
    std::int64_t rows, cols;
  };
  std::vector<Wish> device = {
      {&w->h, act, rows, hidden},
      {&w->residual, act, rows, hidden},
      {&w->normed, act, rows, hidden},
      {&w->q_latent, act, rows, config.q_lora_rank},
      {&w->q, act, rows, std::int64_t{at.num_heads} * (at.nope_dim + at.rope_dim)},
      {&w->kv_a, act, rows, at.latent_dim + at.rope_dim},
      {&w->attention, act, rows, std::int64_t{at.num_heads} * at.value_dim},
      {&w->ffn_gate, act, rows, widths.ffn},
      {&w->ffn_up, act, rows, widths.ffn},
      {&w->shared_out, act, rows, hidden},
      {&w->router_logits, DType::kF32, rows, widths.num_experts},
      {&w->expert_hidden, act, slots, widths.moe},
      {&w->expert_out, act, slots, hidden},
      {&w->logit_hidden, act, limits.max_logit_rows, hidden},
      {&w->logits, DType::kF32, limits.max_logit_rows, config.vocab_size},
  };
  std::vector<Wish> host = {
      {&w->route_experts, DType::kI32, rows, widths.top_k},
      {&w->route_weights, DType::kF32, rows, widths.top_k},
      {&w->host_logits, DType::kF32, limits.max_logit_rows, config.vocab_size},
  };
  if (const auto dims = config.indexer_dims()) {
    device.push_back({&w->index_q, act, rows, std::int64_t{dims->num_heads} * dims->head_dim});
    device.push_back({&w->index_k, act, rows, dims->head_dim});
    device.push_back({&w->index_weights, DType::kF32, rows, dims->num_heads});
    device.push_back({&w->selected, DType::kI32, rows, dims->top_k});
    device.push_back({&w->selected_counts, DType::kI32, rows, 1});
    host.push_back({&w->host_selected, DType::kI32, rows, dims->top_k});
    host.push_back({&w->host_counts, DType::kI32, rows, 1});
  }
  for (const Wish& wish : device) {
    if (wish.cols == 0) continue;
    ASSIGN_OR_RETURN(*wish.tensor, backend.allocate(wish.dtype, wish.rows, wish.cols),
                     "reserving activations");
    w->bytes += static_cast<std::int64_t>(wish.tensor->view().bytes());
  }
  for (const Wish& wish : host) {
    ASSIGN_OR_RETURN(*wish.tensor, backend.allocate_host(wish.dtype, wish.rows, wish.cols),
                     "reserving activations");
    w->bytes += static_cast<std::int64_t>(wish.tensor->view().bytes());
  }
  w->plan = ExpertPlan(limits.max_rows, widths.top_k, widths.num_experts);
  w->parts.resize(kPartsAtOnce);
  return w;
}

}  // namespace stoker
