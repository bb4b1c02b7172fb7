// Sums, maxima and scans of a block or warp, each in one fixed order.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>

namespace stoker::gpu {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum.
__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Every thread gets the sum. `scratch` takes one float per warp; the block's size is a multiple of
// 32.
__device__ inline float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // scratch may still be read by an earlier call
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

// How many threads before this one have `flag`; `total`: how many of the block. `scratch` takes one
// int per warp.
__device__ inline int block_rank(bool flag, int* scratch, int& total) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned ballot = __ballot_sync(kAllLanes, flag);
  __syncthreads();
  if (lane == 0) scratch[warp] = __popc(ballot);
  __syncthreads();
  int rank = __popc(ballot & ((1u << lane) - 1u));
  total = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    if (w < warp) rank += scratch[w];
    total += scratch[w];
  }
  return rank;
}

}  // namespace stoker::gpu
