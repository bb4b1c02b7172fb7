#include "core/runtime/engine.h"

#include <utility>

namespace stoker {

Engine::Engine(ModelConfig config, std::vector<std::unique_ptr<Backend>> backends,
               Placement placement, ModelWeights weights)
    : config_(std::move(config)),
      backends_(std::move(backends)),
      placement_(std::move(placement)),
      weights_(std::move(weights)) {}

Result<std::unique_ptr<const Engine>> Engine::load(ModelConfig config, const WeightSource& source,
                                                   EngineBackends given,
                                                   const ProgressFn& progress) {
  const auto num_layers = static_cast<std::size_t>(config.num_hidden_layers);
  if (given.dense.empty()) given.dense.assign(num_layers, 0);
  CHECK(given.dense.size() == num_layers, "a placement of {} layers for {}", given.dense.size(),
        num_layers);
  std::vector<Backend*> backends;
  backends.reserve(given.backends.size());
  for (const std::unique_ptr<Backend>& backend : given.backends) backends.push_back(backend.get());
  Placement placement(std::move(backends), std::move(given.dense));
  const std::vector<float> inv_freq = config.rope_inv_freq();
  for (const std::unique_ptr<Backend>& backend : given.backends) {
    RETURN_IF_ERROR(backend->set_rope(inv_freq));
  }
  ASSIGN_OR_RETURN(ModelWeights weights, load_weights(config, source, placement, progress),
                   "loading the model");
  return std::unique_ptr<const Engine>(new Engine(std::move(config), std::move(given.backends),
                                                  std::move(placement), std::move(weights)));
}

}  // namespace stoker
