// The non-routed weights of a model, resident on the backends that compute with them.
#pragma once

#include <vector>

#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/interface/backend.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "core/runtime/placement.h"

namespace stoker {

struct IndexerWeights {
  WeightPtr queries;       // wq_b
  WeightPtr key;           // wk
  WeightPtr head_weights;  // weights_proj
  Tensor key_norm_weight, key_norm_bias;
};

struct LayerWeights {
  Tensor input_norm, post_attention_norm;
  // Attention.
  WeightPtr q_a, q_b, kv_a, kv_b, o;
  Tensor q_a_norm, kv_a_norm;
  IndexerWeights indexer;  // kMlaSparse only
  // Feed-forward: the dense one, or the shared expert of a MoE layer (null where there is none).
  WeightPtr gate, up, down;
  // MoE only.
  WeightPtr router;
  Tensor router_bias;
};

struct ModelWeights {
  WeightPtr embedding, head;
  Tensor final_norm;
  std::vector<LayerWeights> layers;  // main layers
};

// Reads every non-routed weight of the main layers and makes it resident on the backend that runs
// its layer: the embedding with the first, the head with the last. `progress` counts bytes.
Result<ModelWeights> load_weights(const ModelConfig& config, const WeightSource& source,
                                  const Placement& placement, const ProgressFn& progress);

}  // namespace stoker
