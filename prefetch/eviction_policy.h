// EvictionPolicy: which resident expert to give up first. It only ranks: ExpertCache decides when
// somebody must go and holds what may not.
//
// The ranking holds exactly the slots that may be evicted. A slot leaves it while its expert is
// leased and comes back with a *standing* that says what the lease was worth. A policy knows what
// it is told here: who came back when, and which layer's turn it is. Nothing is allocated after
// construction; calls take O(1) or O(log num_slots), victim() of "turns" O(num_layers).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "core/base/error.h"
#include "prefetch/expert_grid.h"

namespace stoker {

// How a slot comes into the ranking.
enum class Standing : std::uint8_t {
  kUsed,     // demanded just now
  kGuessed,  // read by guess and not demanded yet: as good as used while its layer is to come
  kKept,     // back from a lease that is not worth a mark (a sweep's): takes its old place
  kCold,     // goes before all that was used: a sweep's passer-by, a guess whose layer is past
};

// Not thread-safe: belongs to one ExpertCache.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;

  // The experts of `layer` are about to be demanded. Layers take turns in ascending order; a step
  // begins when the number falls.
  virtual void begin_turn(int /*layer*/) {}
  // `slot`, which holds `id`, may be evicted from now on. kKept only after leave() without an
  // eviction.
  virtual void enter(SlotIdx slot, ExpertId id, Standing standing) = 0;
  // `slot` may not be evicted any more: leased, or `evicted`.
  virtual void leave(SlotIdx slot, bool evicted) = 0;
  // The slot to give up first; it stays in the ranking. Requires: the ranking is not empty.
  virtual SlotIdx victim() = 0;
};

// "lru": the one not used for the longest. "lrfu": recency and frequency in one decaying count.
// "slru": segmented, one use does not displace what was used twice. "s3fifo": a small queue for
// newcomers, a main queue with second chances, a memory of who was sent away. "turns": recency in
// turns of the expert's own layer, then who is needed again the latest.
std::span<const std::string_view> eviction_policy_names();
// An unknown name is an error that lists the known ones.
Result<std::unique_ptr<EvictionPolicy>> make_eviction_policy(std::string_view name, ExpertGrid grid,
                                                             int num_slots);

}  // namespace stoker
