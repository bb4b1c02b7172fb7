// Engine: a loaded model. Const after loading and shared by runners; what changes while running (KV
// pool, expert residency, workspaces) belongs to the Runner.
#pragma once

#include <memory>

#include "core/base/error.h"
#include "core/base/progress.h"
#include "core/interface/backend.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "core/runtime/model_weights.h"
#include "core/runtime/placement.h"

namespace stoker {

class Engine {
 public:
  // Loads the non-routed weights onto `backend`, which the engine owns from then on.
  static Result<std::unique_ptr<const Engine>> load(ModelConfig config, const WeightSource& source,
                                                    std::unique_ptr<Backend> backend,
                                                    const ProgressFn& progress = nullptr);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Placement& placement() const { return placement_; }
  int num_layers() const { return static_cast<int>(weights_.layers.size()); }  // main layers

 private:
  Engine(ModelConfig config, std::unique_ptr<Backend> backend, ModelWeights weights);

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;  // before backend_ goes
  Placement placement_;
};

}  // namespace stoker
