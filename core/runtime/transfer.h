// Moves rows between backends.
#pragma once

#include "core/interface/backend.h"

namespace stoker {

// Enqueues a copy of `src`, as it is after all that `from` was given so far, into `dst`, before all
// that `to` is given from now on. Memory on the host side is without gaps between rows. A backend
// on the host computes at once, so it waits for its input here.
inline void transfer(Backend& from, const TensorView& src, Backend& to, const TensorView& dst) {
  const TensorView& on_host = to.device() == kHost ? dst : src;
  CHECK(on_host.device != kHost || on_host.row_stride == on_host.cols || on_host.rows <= 1,
        "rows of {} in steps of {} on the host", on_host.cols, on_host.row_stride);
  if (to.device() == kHost) {
    from.copy_out(dst.data, src);
    to.wait_for(from, from.record());
    return;
  }
  to.wait_for(from, from.record());
  if (from.device() == kHost) {
    to.copy_in(dst, src.data);
  } else {
    to.copy(dst, src);
  }
}

}  // namespace stoker
