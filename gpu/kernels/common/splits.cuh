// How the keys of a row are split among blocks of attention, and how what the splits leave is
// merged: in order, to the same bits wherever that is done.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/visible.cuh"

namespace stoker::gpu {

inline constexpr int kSplitTile = 64;  // keys; a split is a number of whole tiles

struct Splits {
  int keys, count;
};
__device__ inline Splits splits_of(int num_keys, const AttendLatentParams& a) {
  const int wanted = min((num_keys + a.split_keys - 1) / a.split_keys, a.max_splits);
  const int keys = ((num_keys + wanted - 1) / wanted + kSplitTile - 1) / kSplitTile * kSplitTile;
  return {keys, (num_keys + keys - 1) / keys};
}

// The latents of one row and head that belong to this thread, kLatents side by side. Called by
// blocks of kLatentDim / kLatents threads. `num_asked` is at least the number of splits: the first
// of so many are asked for before anything has to be known of the row.
template <int kLatents>
__device__ inline void merge_splits(const AttendLatentParams& a, std::int64_t local_row, int head,
                                    int num_asked, float (&out)[kLatents]) {
  struct alignas(4 * kLatents) Part {
    float latents[kLatents];
  };
  constexpr int kAtOnce = 8;
  static_assert(kMostSplits <= kWarp);
  const std::int64_t num_heads = a.rows.dims.num_heads;
  const std::int64_t first = local_row * a.max_splits * num_heads + head;
  const auto* sums = reinterpret_cast<const Part*>(a.split_sums + first * kLatentDim) + threadIdx.x;
  const std::int64_t stride = num_heads * (kLatentDim / kLatents);
  Part parts[kAtOnce];
  const auto ask_from = [&](int begin) {
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (begin + s < num_asked) parts[s] = sums[(begin + s) * stride];
    }
  };
  ask_from(0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const SplitStat own = a.split_stats[first + min(lane, num_asked - 1) * num_heads];
  const int num_splits = splits_of(visible_to(a.rows, a.row_begin + local_row).count, a).count;

  float highest = lane < num_splits ? own.highest : -INFINITY;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, step));
  }
  const float own_weight = exp2f(own.highest - highest);
  float total = 0.0f;
#pragma unroll
  for (float& sum : out) sum = 0.0f;
  for (int begin = 0; begin < num_splits; begin += kAtOnce) {
    if (begin > 0) ask_from(begin);
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      if (begin + s >= num_splits) break;
      const float weight = __shfl_sync(kAllLanes, own_weight, begin + s);
      total = __fmaf_rn(weight, __shfl_sync(kAllLanes, own.total, begin + s), total);
#pragma unroll
      for (int i = 0; i < kLatents; ++i) out[i] = __fmaf_rn(weight, parts[s].latents[i], out[i]);
    }
  }
#pragma unroll
  for (float& sum : out) sum /= total;
}

}  // namespace stoker::gpu
