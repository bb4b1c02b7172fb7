// ExpertProvider: brings routed experts to where they can be computed, and never blocks.
//
// demand() names a layer's experts; the set it returns yields *parts* as they become runnable:
// resident experts at once, others block by block as they land and hold their checksum. A block is
// usable alone and holds whole output rows: gate/up blocks first, then down blocks
// (quant/expert_block.h says how a block's bytes lie).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

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

// A runnable block of one expert: output rows [row_begin, row_begin + num_rows) of gate and up, or
// of down. The views are valid until the set is released; `gate` and `up` are used by kGateUp,
// `down` by kDown.
struct ExpertPart {
  int use = 0;  // index into the uses given to demand()
  ExpertHalf half = ExpertHalf::kGateUp;
  int row_begin = 0;
  int num_rows = 0;
  QuantView gate, up,
      down;  // [num_rows, hidden_size], [num_rows, hidden_size], [num_rows, moe_intermediate_size]
  DeviceId device() const { return half == ExpertHalf::kGateUp ? gate.device : down.device; }
};

// The experts of one layer and step, leased until the set is released.
class ExpertSet {
 public:
  // Moves up to out.size() runnable parts into `out` and returns how many. Zero means none is
  // runnable now. All gate/up parts of an expert come before its first down part.
  virtual std::size_t take_ready(std::span<ExpertPart> out) = 0;
  // True when every part has been taken.
  virtual bool exhausted() const = 0;
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

// A guess that a later layer will want an expert.
struct ExpertGuess {
  int expert = 0;
  float probability = 0.0f;
};

class ExpertProvider {
 public:
  virtual ~ExpertProvider() = default;

  // Leases or fetches the experts of `uses` (ascending, distinct ids). The spans stay valid while
  // the set lives.
  virtual Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) = 0;
  // Says what `layer` may want soon. Free to ignore.
  virtual void hint(int layer, std::span<const ExpertGuess> guesses) = 0;
};

}  // namespace stoker
