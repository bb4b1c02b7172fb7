#include "core/runtime/workspace.h"

#include <algorithm>

namespace stoker {
namespace {

// The widest dense or shared feed-forward.
std::int64_t ffn_width(const ModelConfig& config) {
  std::int64_t width = 0;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role != LayerRole::kMain) continue;
    width = std::max<std::int64_t>(
        width, spec.ffn == FfnKind::kDense ? spec.ffn_width : spec.shared_width);
  }
  return width;
}

// One tensor of a workspace.
template <typename Space>
struct Wish {
  Tensor Space::* tensor;
  DType dtype;
  std::int64_t rows, cols;
};

// Everything a workspace holds: what is allocated and what is counted.
std::vector<Wish<Workspace>> wishes_of(const ModelConfig& config, DType act,
                                       WorkspaceLimits limits) {
  using W = Workspace;
  const ExpertWidths widths = expert_widths(config);
  const AttentionDims at = config.attention_dims();
  const std::int64_t rows = limits.max_rows, slots = rows * widths.top_k,
                     hidden = config.hidden_size, heads = at.num_heads, ffn = ffn_width(config);
  std::vector<Wish<W>> wishes = {
      {&W::h, act, rows, hidden},
      {&W::residual, act, rows, hidden},
      {&W::normed, act, rows, hidden},
      {&W::q_latent, act, rows, config.q_lora_rank},
      {&W::q, act, rows, heads * (at.nope_dim + at.rope_dim)},
      {&W::kv_a, act, rows, at.latent_dim + at.rope_dim},
      {&W::attention, act, rows, heads * at.value_dim},
      {&W::ffn_gate, act, rows, ffn},
      {&W::ffn_up, act, rows, ffn},
      {&W::shared_out, act, rows, hidden},
      {&W::router_logits, DType::kF32, rows, widths.num_experts},
      {&W::expert_hidden, act, slots, widths.moe},
      {&W::expert_out, act, slots, hidden},
      {&W::look_ahead, act, rows, hidden},
      {&W::logit_hidden, act, limits.max_logit_rows, hidden},
      {&W::logits, DType::kF32, limits.max_logit_rows, config.vocab_size},
  };
  if (const auto dims = config.indexer_dims()) {
    const std::vector<Wish<W>> indexer = {
        {&W::index_q, act, rows, std::int64_t{dims->num_heads} * dims->head_dim},
        {&W::index_k, act, rows, dims->head_dim},
        {&W::index_weights, DType::kF32, rows, dims->num_heads},
        {&W::selected, DType::kI32, rows, dims->top_k},
        {&W::selected_counts, DType::kI32, rows, 1},
    };
    wishes.insert(wishes.end(), indexer.begin(), indexer.end());
  }
  return wishes;
}

std::vector<Wish<HostWorkspace>> host_wishes_of(const ModelConfig& config, WorkspaceLimits limits) {
  using W = HostWorkspace;
  const std::int64_t rows = limits.max_rows, top_k = expert_widths(config).top_k;
  std::vector<Wish<W>> wishes = {
      {&W::route_experts, DType::kI32, rows, top_k},
      {&W::route_weights, DType::kF32, rows, top_k},
      {&W::forced_experts, DType::kI32, rows, top_k},
      {&W::guessed_experts, DType::kI32, kMaxLead * rows, kMaxRankedGuesses},
      {&W::guessed_weights, DType::kF32, kMaxLead * rows, kMaxRankedGuesses},
      {&W::logits, DType::kF32, limits.max_logit_rows, config.vocab_size},
  };
  if (const auto dims = config.indexer_dims()) {
    wishes.push_back({&W::selected, DType::kI32, rows, dims->top_k});
    wishes.push_back({&W::selected_counts, DType::kI32, rows, 1});
  }
  return wishes;
}

template <typename Space>
std::int64_t bytes_of(const std::vector<Wish<Space>>& wishes) {
  std::int64_t total = 0;
  for (const Wish<Space>& wish : wishes) total += wish.rows * wish.cols * dtype_bytes(wish.dtype);
  return total;
}

void check_limits(WorkspaceLimits limits) {
  CHECK(limits.max_rows > 0 && limits.max_logit_rows > 0, "{} rows, {} logit rows", limits.max_rows,
        limits.max_logit_rows);
}

}  // namespace

ExpertWidths expert_widths(const ModelConfig& config) {
  ExpertWidths widths;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role != LayerRole::kMain || spec.ffn != FfnKind::kMoe) continue;
    widths.top_k = std::max(widths.top_k, spec.router.top_k);
    widths.num_experts = std::max(widths.num_experts, spec.router.num_experts);
    widths.moe = std::max(widths.moe, spec.ffn_width);
  }
  return widths;
}

std::int64_t Workspace::bytes_needed(const ModelConfig& config, DType activations,
                                     WorkspaceLimits limits) {
  return bytes_of(wishes_of(config, activations, limits));
}

Result<std::unique_ptr<Workspace>> Workspace::create(const ModelConfig& config, Backend& backend,
                                                     WorkspaceLimits limits) {
  check_limits(limits);
  auto w = std::make_unique<Workspace>();
  for (const auto& wish : wishes_of(config, backend.activation_dtype(), limits)) {
    if (wish.cols == 0) continue;  // a model without that part
    ASSIGN_OR_RETURN((*w).*wish.tensor, backend.allocate(wish.dtype, wish.rows, wish.cols),
                     "reserving activations");
  }
  return w;
}

std::int64_t HostWorkspace::bytes_needed(const ModelConfig& config, WorkspaceLimits limits) {
  return bytes_of(host_wishes_of(config, limits));
}

Result<std::unique_ptr<HostWorkspace>> HostWorkspace::create(const ModelConfig& config,
                                                             Backend& backend,
                                                             WorkspaceLimits limits) {
  check_limits(limits);
  auto w = std::make_unique<HostWorkspace>();
  for (const auto& wish : host_wishes_of(config, limits)) {
    ASSIGN_OR_RETURN((*w).*wish.tensor, backend.allocate_host(wish.dtype, wish.rows, wish.cols),
                     "reserving mailboxes");
  }
  const ExpertWidths widths = expert_widths(config);
  w->plan = ExpertPlan(limits.max_rows, widths.top_k, widths.num_experts);
  w->parts.resize(kPartsAtOnce);
  w->site_parts.resize(kPartsAtOnce);
  return w;
}

}  // namespace stoker
