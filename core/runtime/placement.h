// Which backend runs the dense part of each layer, and which compute experts.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/interface/backend.h"

namespace stoker {

// How many backends there are, and how many of them run a dense part.
struct PlacementSize {
  int num_backends = 1;
  int num_dense = 1;
};

class Placement {
 public:
  // `backends` are of different devices, and any of them may compute experts; backends[dense[l]]
  // runs the dense part of main layer l. All of them have the same types of activations and caches.
  Placement(std::vector<Backend*> backends, std::vector<int> dense)
      : backends_(std::move(backends)), dense_(std::move(dense)) {
    for (const int index : dense_) {
      CHECK(index >= 0 && index < static_cast<int>(backends_.size()), "backend {} of {}", index,
            backends_.size());
    }
  }

  static Placement on_one(Backend& backend, int num_layers) {
    return Placement({&backend}, std::vector<int>(static_cast<std::size_t>(num_layers)));
  }

  int num_layers() const { return static_cast<int>(dense_.size()); }
  std::span<Backend* const> backends() const { return backends_; }
  // Index into backends() of the one that runs the dense part of `layer`.
  int dense_index(int layer) const { return dense_[static_cast<std::size_t>(layer)]; }
  Backend& dense(int layer) const {
    return *backends_[static_cast<std::size_t>(dense_index(layer))];
  }
  bool is_dense(int index) const {
    return std::find(dense_.begin(), dense_.end(), index) != dense_.end();
  }
  PlacementSize size() const {
    PlacementSize size{static_cast<int>(backends_.size()), 0};
    for (int i = 0; i < size.num_backends; ++i) size.num_dense += is_dense(i) ? 1 : 0;
    return size;
  }

 private:
  std::vector<Backend*> backends_;
  std::vector<int> dense_;
};

}  // namespace stoker
