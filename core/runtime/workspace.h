// Activations and mailboxes of forward passes, allocated once for the most rows a step may have.
#pragma once

#include <memory>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/model/model_config.h"
#include "core/runtime/expert_plan.h"
#include "core/runtime/placement.h"

namespace stoker {

// Parts of experts that are taken from a set, and given to a backend, in one call.
inline constexpr int kPartsAtOnce = 256;

struct WorkspaceLimits {
  int max_rows = 1;        // rows of a step
  int max_logit_rows = 1;  // of them, rows whose logits are wanted
};

// What the routed experts of a model ask of buffers: the most over its layers.
struct ExpertWidths {
  int top_k = 1, num_experts = 1, moe = 0;  // moe: moe_intermediate_size; 0: there are none
};
ExpertWidths expert_widths(const ModelConfig& config);

// Bytes of the buffers of passes, by whose memory they lie in.
struct WorkspaceBytes {
  std::int64_t dense = 0;    // of every backend that runs a dense part
  std::int64_t experts = 0;  // of every other backend
  std::int64_t host = 0;     // mailboxes, whatever backends there are

  std::int64_t total(const PlacementSize& size) const {
    return size.num_dense * dense + (size.num_backends - size.num_dense) * experts + host;
  }
  WorkspaceBytes& operator+=(const WorkspaceBytes& other) {
    dense += other.dense;
    experts += other.experts;
    host += other.host;
    return *this;
  }
};

// Activations, in the memory of one backend that runs layers' dense parts. T = max_rows, L =
// max_logit_rows.
struct Workspace {
  static std::int64_t bytes_needed(const ModelConfig& config, DType activations,
                                   WorkspaceLimits limits);
  static Result<std::unique_ptr<Workspace>> create(const ModelConfig& config, Backend& backend,
                                                   WorkspaceLimits limits);

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
};

// Mailboxes of a pass, in host memory that its backends reach, and its lists.
struct HostWorkspace {
  static std::int64_t bytes_needed(const ModelConfig& config, WorkspaceLimits limits);
  // `backend` may pin the memory.
  static Result<std::unique_ptr<HostWorkspace>> create(const ModelConfig& config, Backend& backend,
                                                       WorkspaceLimits limits);

  Tensor route_experts, route_weights;      // I32, F32 [T, top_k]
  Tensor forced_experts;                    // I32 [T, top_k]
  Tensor guessed_experts, guessed_weights;  // I32, F32 [kMaxLead * T, kMaxRankedGuesses]
  Tensor logits;                            // F32 [L, vocab_size]
  Tensor selected, selected_counts;         // as Workspace's
  ExpertPlan plan{1, 1, 1};
  std::vector<ExpertPart> parts, site_parts;  // taken from a set; those of one site
};

}  // namespace stoker
