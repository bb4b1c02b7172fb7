// Prefetcher: turns routing into wishes. It knows what later layers may ask for (ExpertPredictor),
// how long the drive will be idle before they do (IdleWindows), what a resident expert is worth
// (ReuseOdds), and whether fetching ahead pays at all (PrefetchSwitch). It wishes; the manager
// fetches.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/interface/expert_source.h"
#include "prefetch/expert_predictor.h"
#include "prefetch/expert_shapes.h"
#include "prefetch/idle_windows.h"
#include "prefetch/prefetch_switch.h"
#include "prefetch/reuse_odds.h"

namespace stoker {

struct PrefetchOptions {
  bool enabled = true;    // --prefetch on|off; off: nothing but what is demanded is read
  bool adaptive = true;   // PrefetchSwitch decides; false: always fetch
  bool warm_up = true;    // ExpertManager::warm_up()
  int num_ranked = 0;     // guesses per row asked of a look-ahead; 0: twice the top-k
  double min_odds = 0.2;  // guesses below are not fetched
  int max_in_flight = 8;  // experts fetched ahead and not landed, at most
};

// An expert to fetch ahead.
struct Wish {
  ExpertId id;
  ReadClass read_class = ReadClass::kNextLayer;
  float odds = 0.0f;  // of being asked for
};

// Driver thread; allocates nothing after construction.
class Prefetcher {
 public:
  using WouldMiss = ExpertPredictor::WouldMiss;
  using Absent = FunctionRef<bool(ExpertId)>;

  Prefetcher(const ExpertShapes& shapes, ExpertGrid grid, const PrefetchOptions& options);

  void set_enabled(bool enabled) { options_.enabled = enabled; }
  // Whether wishes are to be had now.
  bool fetching() const { return options_.enabled && (!options_.adaptive || switch_.on()); }
  // Guesses per row worth computing.
  int num_ranked_guesses() const { return fetching() ? num_ranked_ : 0; }

  void look_ahead(const LookAhead& guesses, WouldMiss would_miss);
  void begin_step(std::span<const TokenId> tokens, WouldMiss would_miss);
  void note_choices(int layer, std::span<const TokenId> tokens,
                    std::span<const std::int32_t> experts);
  // A layer demands; a sweep is a demand far wider than a token's.
  void begin_turn(int layer, std::span<const ExpertUse> uses, bool sweep, std::int64_t now_us,
                  WouldMiss would_miss);
  // All that the turn demanded has landed: from here on the drive is idle.
  void drive_is_idle(std::int64_t now_us) { windows_.drive_is_idle(now_us); }
  // The turn's experts are released.
  void end_turn(std::int64_t now_us);

  // The best expert to fetch next, given what the drive gives and has still to bring; none when the
  // idle time left does not hold it or nothing is worth it.
  std::optional<Wish> next_wish(std::int64_t now_us, double bytes_per_second,
                                std::int64_t bytes_under_way, Absent absent);
  // Whether `wish` is worth `victim`, which is neither cold nor a live guess.
  bool outweighs(const Wish& wish, ExpertId victim) const;

  const ExpertPredictor& predictor() const { return predictor_; }
  const PrefetchSwitch& prefetch_switch() const { return switch_; }
  const IdleWindows& windows() const { return windows_; }
  const PrefetchOptions& options() const { return options_; }

 private:
  const ExpertShapes& shapes_;
  PrefetchOptions options_;
  int num_ranked_;
  ExpertPredictor predictor_;
  ReuseOdds reuse_;
  IdleWindows windows_;
  PrefetchSwitch switch_;
  int layer_ = -1;  // whose turn it is or was
  bool sweep_ = false;
  std::int64_t turn_began_us_ = 0;
};

}  // namespace stoker
