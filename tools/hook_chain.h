// Several StepHooks as one.
#pragma once

#include <algorithm>
#include <vector>

#include "core/runtime/step.h"

namespace stoker::tools {

// All are told; of what is forced the first one that forces something is heard. Null entries are
// left out.
class HookChain final : public StepHooks {
 public:
  HookChain(std::initializer_list<StepHooks*> hooks) {
    std::copy_if(hooks.begin(), hooks.end(), std::back_inserter(hooks_),
                 [](StepHooks* hook) { return hook != nullptr; });
  }

  void on_begin(const StepBatch& batch) override {
    for (StepHooks* hook : hooks_) hook->on_begin(batch);
  }
  void on_end() override {
    for (StepHooks* hook : hooks_) hook->on_end();
  }

  std::span<const std::int32_t> forced_experts(int layer) override {
    return first<std::int32_t>([&](StepHooks& hook) { return hook.forced_experts(layer); });
  }
  std::span<const float> forced_weights(int layer) override {
    return first<float>([&](StepHooks& hook) { return hook.forced_weights(layer); });
  }
  void on_routes(int layer, const RouteMailbox& routes) override {
    for (StepHooks* hook : hooks_) hook->on_routes(layer, routes);
  }

  int num_ranked_wanted() override {
    int wanted = 0;
    for (StepHooks* hook : hooks_) wanted = std::max(wanted, hook->num_ranked_wanted());
    return wanted;
  }
  void on_look_ahead(const LookAhead& guesses) override {
    for (StepHooks* hook : hooks_) hook->on_look_ahead(guesses);
  }
  LookAhead forced_look_ahead(int layer, int lead) override {
    for (StepHooks* hook : hooks_) {
      const LookAhead forced = hook->forced_look_ahead(layer, lead);
      if (forced.num_ranked > 0) return forced;
    }
    return {};
  }

  std::span<const std::int32_t> forced_selection(int layer, int row) override {
    return first<std::int32_t>([&](StepHooks& hook) { return hook.forced_selection(layer, row); });
  }
  bool wants_selection(int layer) override {
    return std::any_of(hooks_.begin(), hooks_.end(),
                       [&](StepHooks* hook) { return hook->wants_selection(layer); });
  }
  void on_selection(int layer, std::span<const std::int32_t> counts,
                    std::span<const std::int32_t> positions) override {
    for (StepHooks* hook : hooks_) {
      if (hook->wants_selection(layer)) hook->on_selection(layer, counts, positions);
    }
  }

 private:
  template <typename T, typename Get>
  std::span<const T> first(const Get& get) {
    for (StepHooks* hook : hooks_) {
      const std::span<const T> found = get(*hook);
      if (!found.empty()) return found;
    }
    return {};
  }

  std::vector<StepHooks*> hooks_;
};

}  // namespace stoker::tools
