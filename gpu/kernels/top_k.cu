// Radix selection: the k-th largest key is found digit by digit by counting, then everything above
// it is listed in order. A score is read three times; a fourth and fifth time only where more than
// kCandidates of them share the highest digits of the k-th.
#include "gpu/error.h"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kCandidates = 8192;
constexpr int kSegment = 1 << 16;  // scores whose flags are held at once
constexpr int kGroup = 4 * kWarp;  // scores that a warp reads at once, four to a lane
constexpr int kGroups = kSegment / kGroup;
static_assert(kDigits == 2 * kThreads && kWarps == kWarp && kGroups <= kThreads);

struct Shared {
  int histogram[kDigits];
  int warp_sums[2][kWarps];
  std::uint32_t digit;
  int rank;  // among the scores of that digit
  int num_candidates;
  union {
    std::uint32_t candidates[kCandidates];
    struct {  // bit l of component c: score 4 * l + c of the group
      uint4 above[kGroups], ties[kGroups];
    } flags;
  };
};

// Larger scores have larger keys; -0 and +0 have the same.
__device__ std::uint32_t order_key(float score) {
  const std::uint32_t bits = f32_to_bits(__fadd_rn(score, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Calls f(key) for every score; loads run ahead of their uses.
template <typename F>
__device__ void for_each_key(const float* scores, int count, F&& f) {
  constexpr int kAhead = 4;
  const auto* fours = reinterpret_cast<const float4*>(scores);
  const int num_fours = count / 4;
  const auto take = [&](const float4& four) {
    f(order_key(four.x));
    f(order_key(four.y));
    f(order_key(four.z));
    f(order_key(four.w));
  };
  int i = static_cast<int>(threadIdx.x);
  for (; i + (kAhead - 1) * kThreads < num_fours; i += kAhead * kThreads) {
    float4 ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) ahead[j] = __ldg(fours + i + j * kThreads);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) take(ahead[j]);
  }
  for (; i < num_fours; i += kThreads) take(__ldg(fours + i));
  const int last = 4 * num_fours + static_cast<int>(threadIdx.x);
  if (last < count) f(order_key(__ldg(scores + last)));
}

// The sum of `value` over the threads before this one; `total`: over all. Called by the whole block
// in step, with one of two places in turn.
__device__ int sum_before(int value, int (&warp_sums)[kWarps], int& total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarp - 1) warp_sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  int before = warp_sums[lane];
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  total = __shfl_sync(kAllLanes, before, kWarp - 1);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int earlier = __shfl_sync(kAllLanes, before, warp == 0 ? 0 : warp - 1);
  return (warp == 0 ? 0 : earlier) + sum - value;
}

// The key of the k-th largest score, and how many scores equal to it belong to the k largest.
struct Threshold {
  std::uint32_t key;
  int ties;
};

// Finds the digit of the `rank`-th largest counted key; s.histogram[digit] keys share it. Leaves
// digit and rank in s, with the block in step.
__device__ void find_digit(Shared& s, int rank) {
  __syncthreads();
  const int high = kDigits - 1 - 2 * static_cast<int>(threadIdx.x), low = high - 1;
  const int num_high = s.histogram[high], num_low = s.histogram[low];
  int total;
  const int before = sum_before(num_high + num_low, s.warp_sums[0], total);
  if (before < rank && rank <= before + num_high + num_low) {
    const bool is_high = rank <= before + num_high;
    s.digit = static_cast<std::uint32_t>(is_high ? high : low);
    s.rank = rank - before - (is_high ? 0 : num_high);
  }
  __syncthreads();
}

__device__ Threshold kth_largest(Shared& s, const float* scores, int count, int k) {
  std::uint32_t prefix = 0;
  int known_bits = 0, rank = k;
  bool gathered = false;  // all keys with that prefix are among the candidates
  while (true) {
    const int bits = min(kDigitBits, 32 - known_bits), shift = 32 - known_bits - bits;
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) s.histogram[i] = 0;
    if (threadIdx.x == 0 && !gathered) s.num_candidates = 0;
    __syncthreads();
    const auto matches = [&](std::uint32_t key) {
      return known_bits == 0 || key >> (32 - known_bits) == prefix;
    };
    const auto count_key = [&](std::uint32_t key) {
      if (matches(key)) atomicAdd(&s.histogram[key >> shift & ((1u << bits) - 1u)], 1);
    };
    if (gathered) {
      for (int i = static_cast<int>(threadIdx.x); i < s.num_candidates; i += kThreads) {
        count_key(s.candidates[i]);
      }
    } else {
      for_each_key(scores, count, count_key);
    }
    find_digit(s, rank);
    prefix = prefix << bits | s.digit;
    rank = s.rank;
    known_bits += bits;
    if (known_bits == 32) return {prefix, rank};
    if (!gathered && s.histogram[s.digit] <= kCandidates) {
      gathered = true;
      for_each_key(scores, count, [&](std::uint32_t key) {
        if (matches(key)) s.candidates[atomicAdd(&s.num_candidates, 1)] = key;
      });
    }
    __syncthreads();
  }
}

// One block per row.
__global__ void __launch_bounds__(kThreads) top_k(TopKParams p) {
  __shared__ Shared s;
  const std::int64_t row = p.row_begin + static_cast<std::int64_t>(blockIdx.x);
  const int visible = p.positions[row] + 1;
  std::int32_t* count =
      static_cast<std::int32_t*>(p.out.counts.data) + row * p.out.counts.row_stride;
  if (visible <= p.top_k) {
    if (threadIdx.x == 0) *count = -1;
    return;
  }
  const float* scores = p.scores + blockIdx.x * p.score_stride;
  const Threshold threshold = kth_largest(s, scores, visible, p.top_k);
  std::int32_t* out =
      static_cast<std::int32_t*>(p.out.positions.data) + row * p.out.positions.row_stride;

  // Positions in order, those above the threshold and the first few that equal it.
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  int above_before = 0, ties_before = 0;
  for (int begin = 0; begin < visible; begin += kSegment) {
    const int num_groups = min(kGroups, (visible - begin + kGroup - 1) / kGroup);
    __syncthreads();  // candidates or flags before are done with
                      // 1. A bit per score.
#pragma unroll 4
    for (int group = warp; group < num_groups; group += kWarps) {
      const int position = begin + group * kGroup + 4 * lane;
      float four[4] = {};
      if (position + 3 < visible) {
        *reinterpret_cast<float4*>(four) =
            __ldg(reinterpret_cast<const float4*>(scores + position));
      } else {
        for (int c = 0; c < 4 && position + c < visible; ++c) four[c] = scores[position + c];
      }
      std::uint32_t above[4], ties[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const std::uint32_t key = order_key(four[c]);
        const bool valid = position + c < visible;
        above[c] = __ballot_sync(kAllLanes, valid && key > threshold.key);
        ties[c] = __ballot_sync(kAllLanes, valid && key == threshold.key);
      }
      if (lane == 0) {
        s.flags.above[group] = {above[0], above[1], above[2], above[3]};
        s.flags.ties[group] = {ties[0], ties[1], ties[2], ties[3]};
      }
    }
    __syncthreads();
    // 2. A thread takes a group and learns how many bits stand before it.
    const uint4 none{};
    const uint4 above = thread < num_groups ? s.flags.above[thread] : none;
    const uint4 ties = thread < num_groups ? s.flags.ties[thread] : none;
    const auto bits_in = [](const uint4& w) {
      return __popc(w.x) + __popc(w.y) + __popc(w.z) + __popc(w.w);
    };
    int all_above, all_ties;
    int above_rank = above_before + sum_before(bits_in(above), s.warp_sums[0], all_above);
    int tie_rank = ties_before + sum_before(bits_in(ties), s.warp_sums[1], all_ties);
    // 3. Bits become positions.
    const auto list = [&](std::uint32_t is_above, std::uint32_t is_tie, int position) {
      if (is_above != 0) {
        out[above_rank++ + min(tie_rank, threshold.ties)] = position;
      } else if (is_tie != 0 && tie_rank++ < threshold.ties) {
        out[above_rank + tie_rank - 1] = position;
      }
    };
    std::uint32_t left = above.x | above.y | above.z | above.w | ties.x | ties.y | ties.z | ties.w;
    for (; left != 0; left &= left - 1) {
      const std::uint32_t bit = left & (0u - left);
      const int position = begin + thread * kGroup + 4 * (__ffs(static_cast<int>(bit)) - 1);
      list(above.x & bit, ties.x & bit, position);
      list(above.y & bit, ties.y & bit, position + 1);
      list(above.z & bit, ties.z & bit, position + 2);
      list(above.w & bit, ties.w & bit, position + 3);
    }
    above_before += all_above;
    ties_before += all_ties;
  }
  if (threadIdx.x == 0) *count = p.top_k;
}

}  // namespace

Status launch_top_k(const TopKParams& params, const Stream& stream) {
  const TopKParams& p = params;
  CHECK(p.top_k > 0 && p.out.positions.cols >= p.top_k && p.out.positions.dtype == DType::kI32 &&
            p.out.counts.dtype == DType::kI32,
        "top {} into {} columns", p.top_k, p.out.positions.cols);
  CHECK(p.score_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.scores) % 16 == 0,
        "rows of {} scores cannot be read four at a time", p.score_stride);
  if (p.num_rows == 0) return {};
  top_k<<<static_cast<unsigned>(p.num_rows), kThreads, 0, native(stream)>>>(p);
  return launch_status("top_k");
}

}  // namespace stoker::gpu
