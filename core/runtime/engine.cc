#include "core/runtime/engine.h"

#include <utility>

namespace stoker {

Engine::Engine(ModelConfig config, std::unique_ptr<Backend> backend, ModelWeights weights)
    : config_(std::move(config)),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      placement_(Placement::on_one(*backend_, static_cast<int>(weights_.layers.size()))) {}

Result<std::unique_ptr<const Engine>> Engine::load(ModelConfig config, const WeightSource& source,
                                                   std::unique_ptr<Backend> backend,
                                                   const ProgressFn& progress) {
  const std::vector<float> inv_freq = config.rope_inv_freq();
  RETURN_IF_ERROR(backend->set_rope(inv_freq));
  ASSIGN_OR_RETURN(ModelWeights weights, load_weights(config, source, *backend, progress),
                   "loading the model");
  return std::unique_ptr<const Engine>(
      new Engine(std::move(config), std::move(backend), std::move(weights)));
}

}  // namespace stoker
