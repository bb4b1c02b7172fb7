// Where a sequence's cached rows lie.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/interface/backend.h"

namespace stoker::gpu {

// Row of the stream's tensor that holds `position`; `pages` is the sequence's table.
__device__ inline std::int64_t cache_row(const std::int32_t* pages, int position) {
  return std::int64_t{pages[position / kPageTokens]} * kPageTokens + position % kPageTokens;
}

}  // namespace stoker::gpu
