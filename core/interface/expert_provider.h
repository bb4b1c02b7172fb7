// ExpertProvider: brings routed experts to where they can be computed, and never blocks.
//
// demand() names a layer's experts; the set it returns yields *parts* as they become runnable:
// resident experts at once, others block by block as they land and hold their checksum. A block is
// usable alone and holds whole output rows: gate/up blocks first, then down blocks
// (quant/expert_block.h says how a block's bytes lie).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/tensor/quant_view.h"

namespace stoker {

// One chosen expert of a layer and the rows that chose it. Its outputs go to slots [slot_begin, +
// rows.size()).
struct ExpertUse {
  int expert = 0;
  std::span<const std::int32_t>
      rows;  // rows of the step: those of decode segments first, each kind ascending
  std::span<const float> weights;  // the router's weight for each row
  int num_decode_rows = 0;         // how many of `rows` are there for decode or verify
  int slot_begin = 0;
  bool draft = false;  // wanted by a draft layer: must not evict
};

enum class ExpertHalf : std::uint8_t { kGateUp, kDown };

// Checks a block when it is first used. Whoever is about to read a part with a guard (a worker of
// the CPU, an upload) calls check() first and leaves the part alone if it says no: its set yields
// the part again once a good copy has landed.
class BlockGuard {
 public:
  // True: the block may be read. Thread-safe for different tickets; once per ticket.
  virtual bool check(std::uint32_t ticket) = 0;

 protected:
  ~BlockGuard() = default;
};

// A runnable block of one expert: output rows [row_begin, row_begin + num_rows) of gate and up, or
// of down. The views are valid until the set is released; `gate` and `up` are used by kGateUp,
// `down` by kDown. Or, of an expert that a device holds whole, a run of blocks like this one.
struct ExpertPart {
  int use = 0;  // index into the uses given to demand()
  ExpertHalf half = ExpertHalf::kGateUp;
  int row_begin = 0;
  int num_rows = 0;
  QuantView gate, up,
      down;  // [num_rows, hidden_size], [num_rows, hidden_size], [num_rows, moe_intermediate_size]
  int block = 0;                // its number among the expert's
  int num_blocks = 1;           // of the run: those after it have as many rows each,
  std::int64_t stride = 0;      // and each begins so many bytes after the one before
  DeviceId site = kHost;        // whose backend computes it; one for all parts of a use
  BlockGuard* guard = nullptr;  // null: the bytes have been checked
  std::uint32_t ticket = 0;
  bool passes_guard() const { return guard == nullptr || guard->check(ticket); }
  DeviceId device() const { return half == ExpertHalf::kGateUp ? gate.device : down.device; }
  // One block of a run by itself.
  ExpertPart block_at(int index) const;
  // Takes `next` into the run, if it is a block that goes on it.
  bool extend(const ExpertPart& next);
};
// The same blocks, in as few parts as runs make of them.
std::vector<ExpertPart> in_runs(std::span<const ExpertPart> blocks);

// The experts of one layer and step, leased until the set is released.
class ExpertSet {
 public:
  // Moves up to out.size() runnable parts into `out` and returns how many. Zero means none is
  // runnable now. All gate/up parts of an expert come, and have passed their guards, before its
  // first down part.
  virtual std::size_t take_ready(std::span<ExpertPart> out) = 0;
  // True when every part has been taken and has passed its guard.
  virtual bool exhausted() const = 0;
  // Fewer slots than experts: nothing more becomes runnable until what was taken has been computed.
  // The caller waits for that and says so by retire_taken().
  virtual bool waits_for_slots() const { return false; }
  virtual void retire_taken() {}
  // An error (an unreadable block without a mirror) ends the step.
  virtual Status status() const = 0;

 protected:
  ~ExpertSet() = default;
  friend struct ReleaseExpertSet;
  // Gives the leases back and the set to its provider, which reuses it: the token path allocates
  // nothing.
  virtual void release() = 0;
};

struct ReleaseExpertSet {
  void operator()(ExpertSet* set) const { set->release(); }
};
using ExpertSetPtr = std::unique_ptr<ExpertSet, ReleaseExpertSet>;

inline constexpr int kMaxRankedGuesses = 32;  // per row of a look-ahead
inline constexpr int kMaxLead = 2;            // MoE layers ahead

// What the look-ahead gate says of a later layer: for each row of the step experts in order of
// their choice score, best first.
struct LookAhead {
  int from = 0;   // the layer that runs: one with experts, or the last before the first such
  int layer = 0;  // the layer that is guessed
  int lead = 1;   // how many MoE layers that is further on: 1 or 2
  int num_rows = 0, num_ranked = 0;
  std::span<const std::int32_t> experts{};  // [num_rows, num_ranked]
};

// Counted over all steps since the provider was made. Experts count once per layer and step.
struct LayerCounters {
  std::int64_t hit = 0;   // resident when demanded
  std::int64_t late = 0;  // on their way, by prefetch, when demanded
  std::int64_t miss = 0;
  std::int64_t demand_bytes = 0;           // read because they were demanded
  std::int64_t prefetch_used_bytes = 0;    // read by guess and demanded before they were evicted
  std::int64_t prefetch_wasted_bytes = 0;  // read by guess and evicted unused
  std::int64_t felt_wait_us = 0;           // time compute stood still for data
  std::int64_t device_hit = 0;             // of hit: computed from a copy that a device holds
  std::int64_t device_upload = 0;          // computed by a device, copied there for this one time
  std::int64_t promoted_bytes = 0;         // copied to a device to stay
  std::int64_t host_us = 0;                // what the host computed of it beside devices
  std::int64_t retried_blocks = 0;   // read again because a read failed or a checksum did not hold
  std::int64_t repaired_blocks = 0;  // of them, taken from another copy

  LayerCounters& operator+=(const LayerCounters& other);
  LayerCounters operator-(const LayerCounters& other) const;
};

// What a device took for experts that it was given some time before: a sample.
struct ExpertTiming {
  int num_experts = 0, num_rows = 0;  // of all of them; computed out of its own memory
  double compute_us = 0.0;
  std::int64_t upload_bytes = 0;  // copied from host memory
  double upload_us = 0.0;
};

class ExpertProvider {
 public:
  virtual ~ExpertProvider() = default;

  // Leases or fetches the experts of `uses` (ascending, distinct ids). The spans stay valid while
  // the set lives. One set is open at a time.
  virtual Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) = 0;

  // What a step is about to do, and what its router chose in `layer`, [T, top_k], best first: known
  // before that is demanded, and by token. Free to ignore.
  virtual void begin_step(std::span<const TokenId> /*tokens*/) {}
  virtual void note_choices(int /*layer*/, std::span<const TokenId> /*tokens*/,
                            std::span<const std::int32_t> /*experts*/) {}

  // Experts per row of a look-ahead that hint() makes use of, at most kMaxRankedGuesses; 0: it need
  // not be computed.
  virtual int num_ranked_guesses() const { return 0; }
  // Says what a later layer may want soon. Free to ignore.
  virtual void hint(const LookAhead& guesses) = 0;

  // What the host's backend took to compute its experts of the open set, once that is through. Free
  // to ignore.
  virtual void note_host_time(double /*us*/) {}
  // What a device measured lately. Free to ignore.
  virtual void note_device_time(DeviceId /*device*/, const ExpertTiming& /*timing*/) {}

  // Waits until a part of the open set may have become runnable, or `timeout` has passed.
  virtual void wait(std::chrono::microseconds timeout) = 0;

  virtual LayerCounters counters(int /*layer*/) const { return {}; }
};

}  // namespace stoker
