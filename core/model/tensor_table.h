// The tensors that a config implies, as a checkpoint names them: what loading checks against, and
// what costs are counted from.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/ids.h"
#include "core/model/model_config.h"
#include "core/tensor/quant_view.h"

namespace stoker {

enum class TensorKind : std::uint8_t {
  kLinear,      // y = x . W^T; may be FP8 with block scales
  kPlain,       // a matrix that is never quantised: embedding, head, router, weights_proj, eh_proj
  kNorm,        // weight or bias of a norm, 1-D
  kRouterBias,  // e_score_correction_bias, 1-D
};

enum class TensorCategory : std::uint8_t {
  kEmbedding,
  kAttention,
  kIndexer,  // its norm included
  kNorms,
  kDenseFfn,
  kRouter,
  kSharedExperts,
  kRoutedExperts,
  kHead,
  kMtp,  // everything of the draft layers, their experts included
};
inline constexpr int kNumTensorCategories = 10;
std::string_view tensor_category_name(TensorCategory category);
// Stored bytes per category, indexed by TensorCategory.
using CategoryBytes = std::array<std::int64_t, kNumTensorCategories>;

struct TensorSpec {
  std::string name;
  std::int64_t rows = 1;  // 1 for 1-D tensors
  std::int64_t cols = 0;
  TensorKind kind = TensorKind::kLinear;
  TensorCategory category = TensorCategory::kEmbedding;
  // As the family publishes it. Files decide: BF16, F16 and F32 are read everywhere.
  QuantFormat format = QuantFormat::kBf16;
  int layer = -1;   // -1: not in a layer
  int expert = -1;  // routed experts only
  // May be absent: a draft layer's own copy of embedding and head; the head where it is tied.
  bool optional = false;

  bool is_vector() const { return kind == TensorKind::kNorm || kind == TensorKind::kRouterBias; }
  std::int64_t elements() const { return rows * cols; }
  // Payload and scales.
  std::int64_t stored_bytes() const;
};

// In the order of the model: embedding, layers, final norm, head. Scales have no entry of their
// own.
std::vector<TensorSpec> tensor_table(const ModelConfig& config);

// "X.weight" -> "X.weight_scale_inv".
std::string scale_name(std::string_view weight_name);
// The weight whose scale `name` is; empty if `name` is no scale.
std::string_view weight_of_scale(std::string_view name);
// "model.layers.{layer}."
std::string layer_prefix(int layer);
// "model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"; projection: gate_proj, up_proj,
// down_proj.
std::string expert_tensor_name(ExpertId id, std::string_view projection);

}  // namespace stoker
