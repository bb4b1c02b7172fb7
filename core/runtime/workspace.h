// Activations and mailboxes of one forward pass, allocated once for the most rows a step may have.
#pragma once

#include <memory>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/model/model_config.h"
#include "core/runtime/expert_plan.h"

namespace stoker {

struct WorkspaceLimits {
  int max_rows = 1;        // rows of a step
  int max_logit_rows = 1;  // of them, rows whose logits are wanted
};

struct Workspace {
  // Bytes that create() will allocate, device and host together.
  static std::int64_t bytes_needed(const ModelConfig& config, DType activations,
                                   WorkspaceLimits limits);
  static Result<std::unique_ptr<Workspace>> create(const ModelConfig& config, Backend& backend,
                                                   WorkspaceLimits limits);

  WorkspaceLimits limits;
  std::int64_t bytes = 0;  // of all tensors below
  // Device memory; T = max_rows, L = max_logit_rows.
  Tensor h, residual, normed;           // [T, hidden_size]
  Tensor q_latent, q, kv_a, attention;  // [T, q_lora_rank], [T, heads * (nope + rope)], [T, latent
                                        // + rope], [T, heads * value]
  Tensor index_q, index_k,
      index_weights;                 // [T, index heads * dim], [T, index dim], F32 [T, index heads]
  Tensor selected, selected_counts;  // I32 [T, index_topk], I32 [T, 1]
  Tensor ffn_gate, ffn_up;           // [T, widest dense or shared FFN]
  Tensor shared_out;                 // [T, hidden_size]
  Tensor router_logits;              // F32 [T, n_routed_experts]
  Tensor expert_hidden, expert_out;  // [T * top_k, moe_intermediate_size], [T * top_k, hidden_size]
  Tensor look_ahead;                 // [T, hidden_size]
  Tensor logit_hidden, logits;       // [L, hidden_size], F32 [L, vocab_size]
  // Host memory.
  Tensor route_experts, route_weights;      // I32, F32 [T, top_k]
  Tensor guessed_experts, guessed_weights;  // I32, F32 [kMaxLead * T, kMaxRankedGuesses]
  Tensor host_logits;                       // F32 [L, vocab_size]
  Tensor host_selected, host_counts;        // as selected, selected_counts
  ExpertPlan plan{1, 1, 1};
  std::vector<ExpertPart> parts;  // taken from a set, not yet enqueued
};

}  // namespace stoker
