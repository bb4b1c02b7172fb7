// Which backend runs the dense part of each layer, and which may run its experts.
#pragma once

#include <vector>

#include "core/base/check.h"
#include "core/interface/backend.h"

namespace stoker {

class LayerPlacement {
 public:
  LayerPlacement(Backend& dense, std::vector<Backend*> experts)
      : dense_(&dense), experts_(std::move(experts)) {}

  Backend& dense() const { return *dense_; }
  // The backend that computes experts whose bytes lie on `device`.
  Backend& experts_on(DeviceId device) const {
    for (Backend* backend : experts_) {
      if (backend->device() == device) return *backend;
    }
    CHECK(false, "no backend for device {}", device.index);
  }

 private:
  Backend* dense_;
  std::vector<Backend*> experts_;
};

// One entry per main layer. On a machine without a GPU all of them name one object.
class Placement {
 public:
  static Placement on_one(Backend& backend, int num_layers) {
    Placement placement;
    for (int i = 0; i < num_layers; ++i)
      placement.layers_.push_back(LayerPlacement(backend, {&backend}));
    return placement;
  }
  const LayerPlacement& layer(int index) const { return layers_[index]; }

 private:
  std::vector<LayerPlacement> layers_;
};

}  // namespace stoker
