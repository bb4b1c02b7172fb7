// Which positions a row attends to.
#pragma once

#include <cuda_runtime.h>

#include "gpu/launch.h"

namespace stoker::gpu {

struct Visible {
  const std::int32_t* chosen;  // null: all
  int count;
  __device__ int position(int i) const { return chosen == nullptr ? i : chosen[i]; }
};

__device__ inline Visible visible_to(const AttendRowsParams& p, std::int64_t row) {
  const Visible all{nullptr, p.step.positions[row] + 1};
  if (!p.sparse) return all;
  const int count = static_cast<const std::int32_t*>(
      p.selection.counts.data)[row * p.selection.counts.row_stride];
  if (count < 0) return all;
  return {static_cast<const std::int32_t*>(p.selection.positions.data) +
              row * p.selection.positions.row_stride,
          count};
}

}  // namespace stoker::gpu
