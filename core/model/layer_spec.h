// What a layer is, as data: the forward pass reads these fields and knows no model names.
#pragma once

#include <cstdint>

namespace stoker {

enum class LayerRole : std::uint8_t { kMain, kDraft };  // kDraft: a multi-token-prediction layer
enum class AttentionKind : std::uint8_t { kMlaDense, kMlaSparse };  // kMlaSparse: MLA + DSA
enum class FfnKind : std::uint8_t { kDense, kMoe };
enum class RoutedWeightPlace : std::uint8_t { kAfterDown };  // where the router's weight multiplies
enum class SublayerEntry : std::uint8_t { kAddNorm };        // residual add, then RMSNorm

// How a MoE layer chooses experts (spec 3.7).
struct RouterSpec {
  int num_experts = 0;
  int top_k = 0;
  int num_groups = 1;
  int top_groups = 1;
  bool normalise = true;  // norm_topk_prob
  float scaling = 1.0f;   // routed_scaling_factor
};

// Dimensions of multi-head latent attention.
struct AttentionDims {
  int num_heads = 0;
  int nope_dim = 0;    // qk_nope_head_dim
  int rope_dim = 0;    // qk_rope_head_dim
  int value_dim = 0;   // v_head_dim
  int latent_dim = 0;  // kv_lora_rank
  float softmax_scale = 0.0f;
};

struct IndexerDims {
  int num_heads = 0;  // index_n_heads
  int head_dim = 0;   // index_head_dim
  int top_k = 0;      // index_topk
};

struct LayerSpec {
  int index = 0;  // as in tensor names: model.layers.{index}
  LayerRole role = LayerRole::kMain;
  AttentionKind attention = AttentionKind::kMlaDense;
  int selection_from = 0;  // layer whose selection this one uses; its own index: selects itself
  FfnKind ffn = FfnKind::kDense;
  RouterSpec router;     // kMoe only
  int ffn_width = 0;     // intermediate_size, or moe_intermediate_size
  int shared_width = 0;  // width of the shared expert; 0: none
  RoutedWeightPlace routed_weight = RoutedWeightPlace::kAfterDown;
  SublayerEntry entry = SublayerEntry::kAddNorm;
};

}  // namespace stoker
