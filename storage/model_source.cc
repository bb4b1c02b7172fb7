#include "storage/model_source.h"

#include <numeric>

namespace stoker::storage {

bool ModelSource::has_draft_layer(int layer) const {
  return has(layer_prefix(layer) + "eh_proj.weight");
}

std::vector<int> ModelSource::expert_layers() const {
  std::vector<int> layers;
  for (std::size_t i = 0; i < experts_.size(); ++i) {
    if (experts_[i]) layers.push_back(static_cast<int>(i));
  }
  return layers;
}

const quant::ExpertBlocks& ModelSource::blocks(int layer) const {
  CHECK(layer >= 0 && std::cmp_less(layer, experts_.size()) && experts_[layer],
        "layer {} has no routed experts", layer);
  return experts_[layer]->blocks;
}

QuantSpec ModelSource::expert_spec(int layer) const {
  CHECK(layer >= 0 && std::cmp_less(layer, experts_.size()) && experts_[layer],
        "layer {} has no routed experts", layer);
  return experts_[layer]->spec;
}

std::int64_t ModelSource::total_bytes() const {
  return std::accumulate(category_bytes_.begin(), category_bytes_.end(), std::int64_t{0});
}

}  // namespace stoker::storage
