#include "gpu/error.h"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kDigits = 256;

// Larger scores have larger keys; -0 and +0 have the same.
__device__ std::uint32_t order_key(float score) {
  const std::uint32_t bits = f32_to_bits(__fadd_rn(score, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The key of the k-th largest score, and how many scores equal to it belong to the k largest. Finds
// eight bits of the key at a time by counting. Called by the whole block.
struct Threshold {
  std::uint32_t key;
  int ties;
};
__device__ Threshold kth_largest(const float* scores, int count, int k) {
  __shared__ int histogram[kDigits];
  __shared__ Threshold found;
  std::uint32_t prefix = 0, mask = 0;
  int remaining = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const std::uint32_t key = order_key(scores[i]);
      if ((key & mask) == prefix) atomicAdd(&histogram[key >> shift & 0xffu], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && histogram[digit] < remaining) remaining -= histogram[digit--];
      found = {prefix | static_cast<std::uint32_t>(digit) << shift, remaining};
    }
    __syncthreads();
    prefix = found.key;
    remaining = found.ties;
    mask |= 0xffu << shift;
    __syncthreads();
  }
  return {prefix, remaining};
}

// One block per row.
__global__ void __launch_bounds__(kThreads) top_k(TopKParams p) {
  __shared__ int scratch[kThreads / kWarp];
  const std::int64_t row = p.row_begin + static_cast<std::int64_t>(blockIdx.x);
  const int visible = p.positions[row] + 1;
  std::int32_t* count =
      static_cast<std::int32_t*>(p.out.counts.data) + row * p.out.counts.row_stride;
  if (visible <= p.top_k) {
    if (threadIdx.x == 0) *count = -1;
    return;
  }
  const float* scores = p.scores + blockIdx.x * p.score_stride;
  const Threshold threshold = kth_largest(scores, visible, p.top_k);
  std::int32_t* out =
      static_cast<std::int32_t*>(p.out.positions.data) + row * p.out.positions.row_stride;
  // Positions in order, those above the threshold and the first few that equal it.
  int above_before = 0, ties_before = 0;
  for (int begin = 0; begin < visible; begin += kThreads) {
    const int position = begin + static_cast<int>(threadIdx.x);
    const std::uint32_t key = position < visible ? order_key(scores[position]) : 0;
    const bool above = position < visible && key > threshold.key;
    const bool tie = position < visible && key == threshold.key;
    int num_above, num_ties;
    const int above_rank = above_before + block_rank(above, scratch, num_above);
    const int tie_rank = ties_before + block_rank(tie, scratch, num_ties);
    if (above || (tie && tie_rank < threshold.ties)) {
      out[above_rank + min(tie_rank, threshold.ties)] = position;
    }
    above_before += num_above;
    ties_before += num_ties;
  }
  if (threadIdx.x == 0) *count = p.top_k;
}

}  // namespace

Status launch_top_k(const TopKParams& params, const Stream& stream) {
  const TopKParams& p = params;
  CHECK(p.top_k > 0 && p.out.positions.cols >= p.top_k && p.out.positions.dtype == DType::kI32 &&
            p.out.counts.dtype == DType::kI32,
        "top {} into {} columns", p.top_k, p.out.positions.cols);
  if (p.num_rows == 0) return {};
  top_k<<<static_cast<unsigned>(p.num_rows), kThreads, 0, native(stream)>>>(p);
  return launch_status("top_k");
}

}  // namespace stoker::gpu
