// UpperTier: the experts that are resident above RAM, as far as ExpertManager needs to know.
#pragma once

#include "core/base/ids.h"

namespace stoker {

class UpperTier {
 public:
  // A demand for `id` is served up there: it is not read, and not guessed. Does not change while a
  // set is open.
  virtual bool holds(ExpertId id) const = 0;

 protected:
  ~UpperTier() = default;
};

}  // namespace stoker
