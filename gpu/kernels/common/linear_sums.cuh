// What the kernels of linears of few rows share: how they read inputs, and the order of their sums.
#pragma once

#include "gpu/kernels/common/expert_places.h"
#include "gpu/kernels/common/linear_places.h"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"

namespace stoker::gpu {

// Of the current device; 1 if it does not say.
inline int num_multiprocessors() {
  const Result<int> count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count.ok() ? *count : 1;
}

// Whether all rows of inputs stand at 16 bytes.
inline bool rows_aligned(const TensorView& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % kPieceBytes == 0 && x.row_stride % 8 == 0;
}
// Columns k .. k + 7 of a row of `cols` inputs, zeros past its end. `aligned`: at 16 bytes.
// kPastL1: before this kernel has waited for the one before, when its L1 cache may hold old lines.
template <bool kPastL1 = false>
__device__ inline uint4 load_eight(const bf16* x, std::int64_t k, std::int64_t cols, bool aligned) {
  const auto load = [](auto* at) { return kPastL1 ? __ldcg(at) : *at; };
  if (aligned && k + 8 <= cols) return load(reinterpret_cast<const uint4*>(x + k));
  const auto* const bits = reinterpret_cast<const std::uint16_t*>(x);
  std::uint16_t eight[8] = {};
  for (int i = 0; i < 8; ++i) {
    if (k + i < cols) eight[i] = load(bits + k + i);
  }
  uint4 out;
  memcpy(&out, eight, sizeof out);
  return out;
}

// A segment's groups, closed in order: `sums` of the first, the others `stride` floats apart;
// scales of the group's two tiles side by side, `scales` that of the output's.
__device__ inline float close_groups(const float* sums, int stride, const float* scales,
                                     int num_groups) {
  float acc = 0.0f;
  if (num_groups == kLinearSegmentGroups) {  // all but the last: read before they are added
#pragma unroll
    for (int g = 0; g < kLinearSegmentGroups; ++g) {
      acc = __fmaf_rn(sums[g * stride], scales[g * 2], acc);
    }
  } else {
    for (int g = 0; g < num_groups; ++g) acc = __fmaf_rn(sums[g * stride], scales[g * 2], acc);
  }
  return acc;
}

// Segments that other blocks have left in memory, in order: of the first at `partials`, the others
// `stride` floats apart.
__device__ inline float add_segments(const float* partials, std::int64_t stride, int num_segments) {
  float total = 0.0f;
#pragma unroll 8
  for (int segment = 0; segment < num_segments; ++segment) {
    total = __fadd_rn(total, __ldcg(partials + segment * stride));
  }
  return total;
}

}  // namespace stoker::gpu
