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
// The driver thread owns it; guards alone are checked by workers. Nothing blocks but wait(). After
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
#include "prefetch/demand_progress.h"
#include "prefetch/expert_cache.h"
#include "prefetch/expert_shapes.h"
#include "prefetch/prefetcher.h"
#include "prefetch/slot_loader.h"
#include "prefetch/upper_tier.h"
#include "prefetch/usage_history.h"

namespace stoker {

// The main layers of a model that have routed experts, ascending.
std::vector<ExpertLayer> expert_layers(const ModelConfig& config);

struct ExpertManagerOptions {
  std::string_view policy = "turns";  // eviction_policy_names()
  PrefetchOptions prefetch{};
  DeviceId device = kHost;  // where the arena's memory is
  DeviceId site = kHost;    // whose backend computes what lies there
};

// An expert that stays where it is while this lives: all its bytes, in block form and checked.
struct BorrowedExpert {
  ExpertLease lease;
  std::span<const std::byte> bytes;
};

class ExpertManager final : public ExpertProvider {
 public:
  // What is given by reference outlives the manager, and the arena outlives the reader, whose reads
  // may still be under way when the manager goes. `source`, `reader` and `arena` may model bytes
  // rather than hold them: addresses are handed on and never read, and an arena may give null for
  // every slot. The arena's slots hold an expert of any layer; the reader belongs to this manager
  // alone. Refused, with the numbers, when there are fewer slots than a token needs in one layer.
  static Result<std::unique_ptr<ExpertManager>> create(std::span<const ExpertLayer> layers,
                                                       const ExpertSource& source,
                                                       ExpertReader& reader, const SlotArena& arena,
                                                       const Clock& clock,
                                                       const ExpertManagerOptions& options);
  ~ExpertManager() override;

  // ExpertProvider. demand() does not fail: what goes wrong is the set's status(). The uses of a
  // demand are a draft's all of them, or none.
  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override;
  void begin_step(std::span<const TokenId> tokens) override;
  void note_choices(int layer, std::span<const TokenId> tokens,
                    std::span<const std::int32_t> experts) override;
  int num_ranked_guesses() const override;
  void hint(const LookAhead& guesses) override;
  void wait(std::chrono::microseconds timeout) override;
  LayerCounters counters(int layer) const override;

  // Takes in what has landed and keeps reads going. demand(), take_ready() and the release of a set
  // do it too; call it now and then while no step runs, so that warm-up goes on.
  void pump();
  // Experts worth having, the best first: they are read into free slots while the drive is idle.
  // Takes the place of an earlier list.
  void warm_up(std::vector<ExpertId> experts);
  // Whether warm-up has more to read and the room for it, or is reading.
  bool warming_up() const;

  // Experts that `upper` holds count as hits and give no parts here; null: nobody does. It outlives
  // the manager.
  void set_upper_tier(const UpperTier* upper) { upper_ = upper; }
  // For a copy to a tier above. Empty unless all of `id` is here and has been checked. Borrowed
  // slots are not evicted: borrow few.
  std::optional<BorrowedExpert> borrow(ExpertId id);

  // Turns fetching ahead on or off while running; what is under way goes on.
  void set_prefetch(bool enabled) { prefetcher_.set_enabled(enabled); }

  // Sentences for the log that came up since the last call: too few slots for a token's cycle, a
  // block repaired from another copy.
  std::vector<std::string> take_notices();

  // What the drives give together: what the reader promises, else what they gave so far; 0:
  // unknown.
  double drive_bytes_per_second() const;

  const ExpertCache& cache() const { return cache_; }
  const Prefetcher& prefetcher() const { return prefetcher_; }
  // What was demanded so far; give it the history of earlier runs before the first demand.
  UsageHistory& usage() { return usage_; }
  // All that was read and landed: demand_bytes + prefetch_used_bytes + prefetch_wasted_bytes over
  // all layers, plus prefetched_unused_bytes().
  std::int64_t bytes_read() const { return loader_.bytes_read(); }
  // Bytes read by guess into slots where they still wait for their first use.
  std::int64_t prefetched_unused_bytes() const;

 private:
  // What a slot is busy with, beside holding an expert.
  enum class Errand : std::uint8_t {
    kNone,
    kDemand,    // an expert of the open set
    kAhead,     // being read on speculation
    kDraining,  // given up; waits for its reads to come back
  };
  struct SlotState {
    Errand errand = Errand::kNone;
    int use = 0;                     // kDemand: of the open set
    int layer = 0;                   // of the expert it was assigned to last
    bool demanded = false;           // since then
    bool live_guess = false;         // read by guess for a turn that is still to come
    bool warm = false;               // read by warm-up
    std::int64_t guessed_bytes = 0;  // landed before its expert was demanded
    ExpertLease lease;               // kDraining: a resident expert with a block on its way again
  };
  struct LiveGuess {
    SlotIdx slot;
    ExpertId id;
  };

  // A use of the open set.
  struct Use {
    enum class Phase : std::uint8_t { kWaiting, kReading, kLeased, kRetired, kAbove };
    Phase phase = Phase::kWaiting;
    SlotIdx slot = 0;
    ExpertLease lease;
    Standing standing = Standing::kUsed;  // that its lease ends with
    bool brought = false;                 // by this demand
  };

  class Set final : public ExpertSet {
   public:
    explicit Set(ExpertManager& manager) : manager_(manager) {}
    std::size_t take_ready(std::span<ExpertPart> out) override { return manager_.take_ready(out); }
    bool exhausted() const override { return manager_.exhausted(); }
    bool waits_for_slots() const override { return manager_.waits_for_slots(); }
    void retire_taken() override { manager_.retire_taken(); }
    Status status() const override { return manager_.set_status(); }

   private:
    void release() override { manager_.release_set(); }
    ExpertManager& manager_;
  };

  ExpertManager(ExpertShapes shapes, const ExpertSource& source, ExpertReader& reader,
                const SlotArena& arena, const Clock& clock, const ExpertManagerOptions& options,
                std::unique_ptr<EvictionPolicy> policy);

  // The open set.
  std::size_t take_ready(std::span<ExpertPart> out);
  bool exhausted() const;
  bool waits_for_slots() const;
  void retire_taken();
  Status set_status() const;
  void release_set();

  void rank_uses();
  void take_over(int use, SlotIdx slot);
  void count_as_demanded(SlotIdx slot);
  void admit();
  bool admit(int use);
  bool may_evict_for(int use);
  int layer_share() const;  // of the slots
  int max_passers() const;
  void commit_if_landed(int use);
  void pass(int use, int block);
  void retire(int use);
  int num_held() const;
  void felt_wait(bool standing_still);

  void on_event(const BlockEvent& event);
  void on_landed(const BlockEvent& event);
  void assign(SlotIdx slot, ExpertId id);
  void count_as_wasted(SlotIdx slot);
  void read_ahead(ExpertId id, SlotIdx slot, ReadClass read_class, float odds);
  void drain(SlotIdx slot);
  void settle(SlotIdx slot);

  bool held_above(ExpertId id) const { return upper_ != nullptr && upper_->holds(id); }

  // Reads on speculation.
  bool would_miss(ExpertId id) const;
  void fetch_ahead();
  void fetch_wishes(std::int64_t now_us);
  std::optional<SlotIdx> room_for(const Wish& wish);
  void fetch_warm();
  void expire_guesses(int layer);
  void give_up_reading_ahead();
  bool demand_is_landing() const;
  int max_ahead() const;
  int num_warming() const;
  std::int64_t bytes_ahead() const;

  ExpertId id_of(int use) const { return {layer_, uses_[use].expert}; }
  SlotState& state(SlotIdx slot) { return slots_[slot]; }
  const SlotState& state(SlotIdx slot) const { return slots_[slot]; }
  LayerCounters& count(int layer) { return counters_[layer]; }

  ExpertShapes shapes_;
  DeviceId site_;
  ExpertReader& reader_;
  const SlotArena& arena_;
  const Clock& clock_;
  ExpertGrid grid_;
  ExpertCache cache_;
  SlotLoader loader_;
  const UpperTier* upper_ = nullptr;
  int num_experts_ = 0;  // of all layers
  std::vector<SlotState> slots_;
  std::vector<LayerCounters> counters_;  // by layer; retries are the loader's
  std::vector<std::string> notices_;

  Prefetcher prefetcher_;
  UsageHistory usage_;
  std::vector<SlotIdx> ahead_;           // slots on errand kAhead
  std::vector<LiveGuess> live_guesses_;  // may hold some that have been evicted since
  std::vector<ExpertId> warm_;
  std::size_t next_warm_ = 0;

  // The open set. `uses_` is the caller's.
  Set set_{*this};
  bool open_ = false;
  bool sweep_ = false;
  int layer_ = 0;
  std::span<const ExpertUse> uses_;
  DemandProgress progress_;
  std::vector<Use> use_states_;
  std::vector<int> waiting_;  // uses without a slot, the next one last
  int wave_ = 0;              // a later wave is read after an earlier one
  int num_retirable_ = 0;     // leased uses whose parts have all been taken and have passed
  int num_passers_ = 0;       // uses that hold a slot and go to the cold end
  std::optional<Error> error_;
  std::optional<std::int64_t> still_since_us_;
  std::vector<int> by_rows_;  // scratch of rank_uses()
};

}  // namespace stoker
