// Decides which expert sits in which slot. Knows ids and slots, never bytes, so the engine and the
// simulator run the same object. Not thread-safe: the driver thread owns it.
//
//   absent --reserve--> in flight --commit--> resident <--lease/release--> leased
//     ^                     |                    |
//     +------abandon--------+<-----evicted-------+        (by reserve(), of the policy's choice)
//
// Evictable is what is resident and not leased. Nothing is allocated after construction; every call
// costs what the policy costs.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "prefetch/eviction_policy.h"
#include "prefetch/expert_grid.h"

namespace stoker {

class ExpertCache;

// Keeps an expert resident. Give it back by release(), or by letting it go.
class ExpertLease {
 public:
  ExpertLease() = default;
  ExpertLease(ExpertLease&& other) noexcept : cache_(other.cache_), slot_(other.slot_) {
    other.cache_ = nullptr;
  }
  ExpertLease& operator=(ExpertLease&& other) noexcept;
  ~ExpertLease() { release(Standing::kUsed); }

  explicit operator bool() const { return cache_ != nullptr; }
  SlotIdx slot() const { return slot_; }
  // `standing` tells the policy what the lease was worth; kKept only for an expert that was
  // evictable before.
  void release(Standing standing);

 private:
  friend class ExpertCache;
  ExpertLease(ExpertCache& cache, SlotIdx slot) : cache_(&cache), slot_(slot) {}

  ExpertCache* cache_ = nullptr;
  SlotIdx slot_ = 0;
};

class ExpertCache {
 public:
  // `num_slots` at most; grow() says how many there are.
  ExpertCache(ExpertGrid grid, int num_slots, std::unique_ptr<EvictionPolicy> policy);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // Slots [0, num_usable) may be used from now on. Never fewer than before.
  void grow(int num_usable);
  // Layers take turns; tells the policy.
  void begin_turn(int layer) { policy_->begin_turn(layer); }

  bool resident(ExpertId id) const;
  bool in_flight(ExpertId id) const;
  // Where `id` sits, resident or in flight.
  std::optional<SlotIdx> slot_of(ExpertId id) const;
  // Who sits in `slot`, resident or in flight.
  std::optional<ExpertId> expert_in(SlotIdx slot) const;
  // What the resident expert in `slot` last came into the ranking with.
  Standing standing(SlotIdx slot) const { return slots_[checked(slot)].standing; }

  // Keeps `id` resident while the lease lives. Empty if `id` is not resident.
  std::optional<ExpertLease> lease(ExpertId id);

  // Makes room for `id`, evicting the policy's choice if no slot is free. Empty if every slot is
  // leased or in flight. Requires: `id` is absent. Follow with exactly one commit() or abandon().
  std::optional<SlotIdx> reserve(ExpertId id);
  // The same, but evicts nobody.
  std::optional<SlotIdx> reserve_free(ExpertId id);
  // The expert in flight in `slot` has arrived, and is evictable or leased at once.
  void commit(SlotIdx slot, Standing standing);
  ExpertLease commit_leased(SlotIdx slot);
  // It will not: the slot is free.
  void abandon(SlotIdx slot);

  // Whom reserve() would evict if no slot is free.
  std::optional<SlotIdx> victim() const;
  // Sends an evictable expert away: the slot is free.
  void evict(SlotIdx slot);
  // Ranks an evictable expert anew.
  void rank(SlotIdx slot, Standing standing);

  const EvictionPolicy& policy() const { return *policy_; }
  int num_slots() const { return static_cast<int>(slots_.size()); }
  int num_usable() const { return num_usable_; }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_in_flight() const { return num_in_flight_; }
  int num_leased() const { return num_leased_; }  // slots, however many leases
  int num_evictable() const { return num_usable_ - num_free() - num_in_flight_ - num_leased_; }

 private:
  friend class ExpertLease;
  enum class State : std::uint8_t { kFree, kInFlight, kResident };
  struct Slot {
    ExpertId id;
    State state = State::kFree;
    Standing standing = Standing::kCold;
    bool was_ranked = false;
    std::int32_t num_leases = 0;
  };
  static constexpr SlotIdx kNowhere = -1;

  std::size_t checked(SlotIdx slot) const;
  Slot& arrived(SlotIdx slot);
  void enter(SlotIdx slot, Standing standing);
  void release(SlotIdx slot, Standing standing);

  ExpertGrid grid_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::vector<Slot> slots_;
  std::vector<SlotIdx> slot_of_;  // by grid index
  std::vector<SlotIdx> free_;     // the lowest last
  int num_usable_ = 0, num_in_flight_ = 0, num_leased_ = 0;
};

}  // namespace stoker
