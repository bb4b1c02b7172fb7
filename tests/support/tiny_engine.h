// A runner over a tiny random model in memory, for tests of the forward pass.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/runtime/runner.h"
#include "core/runtime/session.h"
#include "prefetch/expert_manager.h"
#include "prefetch/tiered_experts.h"
#include "tests/support/device_backend.h"
#include "tests/support/memory_model.h"
#include "tests/support/memory_reader.h"

namespace stoker::test {

// Room for short tests that want every row's logits.
inline constexpr RunnerOptions kTinyRunner{
    .context_tokens = 1024, .prefill_rows = 128, .decode_rows = 8, .prefill_logit_rows = 128};

// Slots on every device of the engine's backends, and what is done with them.
struct TinyTiers {
  int num_slots = 0;  // of each device; 0: none has slots
  int polls_per_copy = 1;
  TierOptions options{};  // dense_device follows from the backends
};

// How the routed experts are paged.
struct TinyPaging {
  int num_slots = 0;  // 0: one for each expert
  MemoryReaderOptions reader{};
  ExpertManagerOptions manager{};
  bool prepare_experts = false;  // before they are read: reading one then allocates nothing
  std::optional<TinyTiers> tiers{};
};

class TinyEngine {
 public:
  using WrapProvider =
      std::function<std::unique_ptr<ExpertProvider>(std::unique_ptr<ExpertProvider>)>;

  // `config` is the text of a config.json (published_configs.h).
  TinyEngine(const std::string& config, EngineBackends backends,
             RunnerOptions options = kTinyRunner, const WrapProvider& wrap = nullptr,
             const TinyPaging& paging = {});

  Runner& runner() { return *runner_; }
  // What pages the experts, also when it is wrapped.
  ExpertManager& experts() { return *manager_; }
  TieredExperts& tiers() { return *tiers_; }
  MemoryDeviceSlots& device_slots(int device) { return *device_slots_[device]; }
  const ModelConfig& config() const { return runner_->engine().config(); }
  KvSequence sequence() { return KvSequence(runner_->kv_pool()); }

  // Feeds `tokens` to `kv` in one pass and returns the logits of the wanted rows.
  std::vector<std::vector<float>> feed(KvSequence& kv, std::span<const TokenId> tokens,
                                       Purpose purpose, Logits want);
  // The logits of a finished pass.
  static std::vector<std::vector<float>> rows_of(const Forward& forward);

 private:
  std::unique_ptr<ExpertProvider> in_tiers(std::unique_ptr<ExpertManager> manager,
                                           const EngineBackends& backends, const TinyTiers& wanted);

  ModelConfig config_;
  SteadyClock clock_;
  std::unique_ptr<MemoryExperts> source_;
  std::unique_ptr<MemoryArena> arena_;
  std::unique_ptr<MemoryReader> reader_;
  ExpertManager* manager_ = nullptr;  // the runner's, perhaps inside a wrapper
  TieredExperts* tiers_ = nullptr;
  std::vector<MemoryDeviceSlots*> device_slots_;
  std::unique_ptr<Runner> runner_;
};

// Token ids in [0, vocab_size), never all equal.
std::vector<TokenId> random_tokens(int count, int vocab_size, std::uint64_t seed);

}  // namespace stoker::test
