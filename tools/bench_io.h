// stoker bench --suite io: random expert blocks read the way the engine reads them, in every way it
// can, and fio on the same files beside it.
#pragma once

#include "core/base/error.h"
#include "tools/model_flags.h"

namespace stoker::tools {

struct IoBenchFlags {
  ModelFlags model;  // MODEL and --store
  int rounds = 5;    // over all cases; four times as many pairs with fio
  bool json = false;
};

Result<int> bench_io(const IoBenchFlags& flags);

}  // namespace stoker::tools
