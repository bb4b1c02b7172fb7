// ExpertManager: the ExpertProvider of a model whose experts need not fit. It joins who sits where
// (ExpertCache), how blocks get there (SlotLoader over an ExpertReader) and what to fetch ahead
// (Prefetcher).
//
// A demand leases what is resident, waits for what prefetch has under way ("late") and reads the
// rest ("miss"): gate/up blocks of all missing experts before any down block, so that computing
// starts with the first block that lands. Where the slots hold fewer than are demanded it goes in
// rolling waves: the slots of experts that have been computed (ExpertSet::retire_taken) go to the
// next ones.
//
// The driver thread owns it; check() alone is called by workers. Nothing blocks but wait(). After
// construction the path of a token allocates nothing; errors and notices do.
//
// A set may be released at any time, provided that whoever was given its parts is done with them.
// Reads under way then stay the manager's: their slots are not used again before they have come
// back.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/clock.h"
#include "core/interface/expert_provider.h"
#include "core/interface/expert_source.h"
#include "core/interface/slot_arena.h"
#include "core/model/model_config.h"
#include "prefetch/expert_cache.h"
#include "prefetch/prefetcher.h"
#include "prefetch/usage_history.h"

namespace stoker {

// A layer with routed experts, as the manager needs to know it.
struct ExpertLayer {
  int layer = 0;  // index into the layer table
  int num_experts = 0;
  int top_k = 0;
};
// The main MoE layers of a model, ascending.
std::vector<ExpertLayer> expert_layers(const ModelConfig& config);

struct ExpertManagerOptions {
  std::string_view policy = "lru";  // eviction_policy_names()
  PrefetchOptions prefetch;
  DeviceId device = kHost;  // where the arena's memory is
};

class ExpertManager final : public ExpertProvider {
 public:
  // What is given by reference outlives the manager. `source`, `reader` and `arena` may model bytes
  // rather than hold them: addresses are handed on and never read, and an arena may give null for
  // every slot. Refused, with the numbers, when the arena has fewer slots than a token needs in one
  // layer, or its slots are smaller than an expert.
  static Result<std::unique_ptr<ExpertManager>> create(std::span<const ExpertLayer> layers,
                                                       const ExpertSource& source,
                                                       ExpertReader& reader, const SlotArena& arena,
                                                       const Clock& clock,
                                                       const ExpertManagerOptions& options);
  // Waits for the reads under way.
  ~ExpertManager() override;

  // ExpertProvider. demand() fails only after the arena has failed and left no slot.
  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override;
  int num_ranked_guesses() const override;
  void hint(const LookAhead& guesses) override;
  void wait(std::chrono::microseconds timeout) override;
  LayerCounters counters(int layer) const override;

  // Takes in what has landed and keeps background reads going. demand(), take_ready() and hint() do
  // it too; call it now and then while no step runs, so that warm-up goes on.
  void pump();
  // True while reads are under way or background reads are still to be made.
  bool busy() const;
  // Experts worth having resident, best first: they are read into free slots when the drive is
  // idle. Replaces an earlier list.
  void warm_up(std::span<const ExpertId> experts);

  // Sentences for the log that came up since the last call: too few slots for a token's cycle, a
  // block repaired from another copy.
  std::vector<std::string> take_notices();

  const ExpertCache& cache() const;
  const Prefetcher& prefetcher() const;
  const UsageHistory& usage() const;
  UsageHistory& usage();
  // Bytes read by guess into slots where they still wait for their first use. What was read is
  // demand_bytes + prefetch_used_bytes + prefetch_wasted_bytes over all layers, plus this.
  std::int64_t prefetched_unused_bytes() const;

 private:
  class Impl;
  explicit ExpertManager(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
