// UsageHistory: how often each expert was used, forgetting slowly; kept between runs, so that the
// next one can begin with the experts that this one used most.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_provider.h"
#include "prefetch/expert_grid.h"

namespace stoker {

// Driver thread; observing allocates nothing.
class UsageHistory {
 public:
  explicit UsageHistory(ExpertGrid grid);

  // A layer's turn. A step begins when the layer number falls.
  void observe(int layer, std::span<const ExpertUse> uses);

  // How often `id` was used, recent uses counting more; to be compared with that of others.
  double heat(ExpertId id) const { return counts_[static_cast<std::size_t>(grid_.index(id))]; }

  bool empty() const { return num_observed_ == 0; }
  // Experts that were used, the most used first.
  std::vector<ExpertId> most_used() const;

  // A text of some ten thousand bytes. `model` names the model it belongs to (a hash; no spaces).
  std::string to_text(std::string_view model) const;
  // Takes over what to_text() wrote. kInvalidArgument for another model's, kCorrupt for anything
  // else that does not fit; the history is unchanged then.
  Status from_text(std::string_view text, std::string_view model);

 private:
  ExpertGrid grid_;
  std::vector<double> counts_;  // by grid index, in units that grow with time
  double unit_ = 1.0;           // what one use counts now
  int layer_ = -1;
  std::int64_t num_observed_ = 0;
};

}  // namespace stoker
