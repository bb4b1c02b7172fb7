// Engine: a loaded model. Const after loading and shared by runners; what changes while running (KV
// pool, expert residency, workspaces) belongs to the Runner.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/interface/backend.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "core/runtime/model_weights.h"
#include "core/runtime/placement.h"

namespace stoker {

// What computes a model, and which of it runs which layer: see Placement.
struct EngineBackends {
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<int> dense;  // index into `backends` for every main layer; empty: 0 for all

  EngineBackends() = default;
  // One for everything.
  template <typename B>
  EngineBackends(std::unique_ptr<B> backend) {  // NOLINT(google-explicit-constructor)
    backends.push_back(std::move(backend));
  }
};

class Engine {
 public:
  // Loads the non-routed weights onto the backends that run their layers; the engine owns these
  // from then on. The embedding belongs to the first layer's, the head to the last one's.
  static Result<std::unique_ptr<const Engine>> load(ModelConfig config, const WeightSource& source,
                                                    EngineBackends backends,
                                                    const ProgressFn& progress = nullptr);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Placement& placement() const { return placement_; }
  int num_layers() const { return static_cast<int>(weights_.layers.size()); }  // main layers

 private:
  Engine(ModelConfig config, std::vector<std::unique_ptr<Backend>> backends, Placement placement,
         ModelWeights weights);

  ModelConfig config_;
  std::vector<std::unique_ptr<Backend>> backends_;
  Placement placement_;
  ModelWeights weights_;  // before the backends go
};

}  // namespace stoker
