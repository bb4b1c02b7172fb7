// ExpertSites: the backends that compute the experts of a layer, each with buffers of its own; the
// way of the inputs there, and of the outputs back to the backend that runs the layer's dense part.
//
// Belongs to one pass. After construction nothing is allocated.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/base/clock.h"
#include "core/interface/backend.h"
#include "core/model/model_config.h"
#include "core/runtime/placement.h"
#include "core/runtime/workspace.h"

namespace stoker {

class ExpertSites {
 public:
  // Bytes of the buffers of a backend that runs no dense part.
  static std::int64_t bytes_needed(const ModelConfig& config, DType activations,
                                   WorkspaceLimits limits);
  // `workspaces` has an entry for every backend of the placement, null for those that run no dense
  // part; it outlives the sites, and so does `clock`.
  static Result<std::unique_ptr<ExpertSites>> create(
      const ModelConfig& config, const Placement& placement, WorkspaceLimits limits,
      std::span<const std::unique_ptr<Workspace>> workspaces, const Clock& clock);

  // A layer whose dense part runs on backend `dense` begins: `x` [T, hidden_size] is its input,
  // written by what was enqueued so far. What the host may compute of a step this small is on its
  // way from now on, and there once an event recorded after this call is done.
  void begin(const StepView& step, int dense, int num_slots);

  // Enqueues parts, each with the backend of its site; those of devices before those of the host,
  // which computes at once. `scratch` takes as many parts.
  void run(const StepView& step, std::span<const ExpertUse> uses, std::span<const ExpertPart> parts,
           std::span<ExpertPart> scratch);

  // Brings all outputs to the dense backend's: [num_slots, hidden_size], for what is enqueued there
  // from now on.
  void collect(std::span<const ExpertUse> uses);
  TensorView out() const;

  // Lets backends that were given parts get on with them, where they need somebody to ask.
  void poll();
  // Tells what it took: of the host's backend, which had something to do for this layer, and of
  // devices what they measured lately.
  void report_times(ExpertProvider& experts) const;
  // First error of the backends that were given parts of this layer.
  Status status() const;

 private:
  struct Site {
    Backend* backend = nullptr;
    Tensor own_x, own_hidden, own_out;  // of backends that run no dense part
    TensorView x, hidden, out;  // [T, hidden_size], [slots, moe width], [slots, hidden_size]
    bool has_input = false;     // of this layer
    bool used = false;
  };

  int index_of(DeviceId device) const;
  void send_input(Site& site);
  TensorView rows(const TensorView& view) const { return view.row_slice(0, num_rows_); }
  TensorView slots(const TensorView& view, std::int64_t begin, std::int64_t count) const {
    return view.row_slice(begin, count);
  }

  std::vector<Site> sites_;  // as the placement's backends
  std::vector<int> order_;   // of giving out parts: devices, then the host
  std::vector<int> site_of_use_;
  const Clock* clock_ = nullptr;
  std::int64_t host_us_ = 0;
  int dense_ = 0;
  int num_rows_ = 0, num_slots_ = 0;
};

}  // namespace stoker
