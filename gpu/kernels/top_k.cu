// Radix selection: the k-th largest key is found digit by digit by counting, then everything above
// it is listed in order. A score is read three times; a fourth and fifth time only where more than
// kCandidates of them share the highest digits of the k-th. Where the device has clusters, the
// blocks of one share a long row: each takes a slice and reads the others' counts.
#include <cooperative_groups.h>

#include "core/tensor/order_key.h"
#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
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
constexpr int kWords = kSegment / 32;
constexpr int kClusterBlocks = 8;
constexpr int kWorthCluster = 1 << 16;  // scores of a row
constexpr int kMostClusters = 4;        // more rows keep the device busy one block each
static_assert(kDigits == 2 * kThreads && kWarps == kWarp);

struct Shared {
  alignas(8) int histogram[kDigits];
  int warp_sums[2][kWarps];
  std::uint32_t digit;
  int in_digit;  // scores of that digit
  int rank;      // among them
  int num_candidates;
  int num_above, num_ties;
  union {
    std::uint32_t candidates[kCandidates];
    struct {  // a bit per score
      std::uint32_t above[kWords], ties[kWords];
    } flags;
  };
};

// The blocks that share a row. A block that is alone reads its own shared memory as such, which is
// faster.
template <bool kTogether>
struct Cluster {
  __device__ static int size() { return 1; }
  __device__ static int rank() { return 0; }
  __device__ static void sync() { __syncthreads(); }
  __device__ static Shared& shared_of(Shared& own, int) { return own; }
};
template <>
struct Cluster<true> {
#if __CUDA_ARCH__ >= 900
  __device__ static int size() {
    return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
  }
  __device__ static int rank() {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  __device__ static void sync() { cooperative_groups::this_cluster().sync(); }
  __device__ static Shared& shared_of(Shared& own, int rank) {
    return *cooperative_groups::this_cluster().map_shared_rank(&own, rank);
  }
#else
  __device__ static int size() { return 1; }
  __device__ static int rank() { return 0; }
  __device__ static void sync() { __syncthreads(); }
  __device__ static Shared& shared_of(Shared& own, int) { return own; }
#endif
};

// Four scores at once, which a plain load would be taken apart for. Not before wait_for_previous().
__device__ float4 load_four(const float4* at) {
  float4 out;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
               : "l"(at));
  return out;
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
    for (int j = 0; j < kAhead; ++j) ahead[j] = load_four(fours + i + j * kThreads);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) take(ahead[j]);
  }
  for (; i < num_fours; i += kThreads) take(load_four(fours + i));
  const int last = 4 * num_fours + static_cast<int>(threadIdx.x);
  if (last < count) f(order_key(scores[last]));
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

// Finds the digit of the `rank`-th largest key that the cluster's blocks counted. Leaves digit,
// in_digit and rank in s, and the cluster in step.
template <bool kTogether>
__device__ void find_digit(Shared& s, int rank) {
  using Cluster = gpu::Cluster<kTogether>;
  constexpr int kMostBlocks = kTogether ? kClusterBlocks : 1;
  Cluster::sync();
  const int high = kDigits - 1 - 2 * static_cast<int>(threadIdx.x), low = high - 1;
  int num_high = 0, num_low = 0;
  const int num_blocks = Cluster::size();
#pragma unroll
  for (int block = 0; block < kMostBlocks; ++block) {  // without branches: all loads under way
    const Shared& counted = Cluster::shared_of(s, min(block, num_blocks - 1));
    const int2 both = *reinterpret_cast<const int2*>(&counted.histogram[low]);
    num_low += block < num_blocks ? both.x : 0;
    num_high += block < num_blocks ? both.y : 0;
  }
  int total;
  const int before = sum_before(num_high + num_low, s.warp_sums[0], total);
  if (before < rank && rank <= before + num_high + num_low) {
    const bool is_high = rank <= before + num_high;
    s.digit = static_cast<std::uint32_t>(is_high ? high : low);
    s.in_digit = is_high ? num_high : num_low;
    s.rank = rank - before - (is_high ? 0 : num_high);
  }
  Cluster::sync();
}

// Of the scores of all blocks of the cluster; these `count` are this block's.
template <bool kTogether>
__device__ Threshold kth_largest(Shared& s, const float* scores, int count, int k) {
  std::uint32_t prefix = 0;
  int known_bits = 0, rank = k;
  bool gathered = false;  // all keys with that prefix are among the candidates
  if (threadIdx.x == 0) s.num_candidates = 0;
  while (true) {
    const int bits = min(kDigitBits, 32 - known_bits), shift = 32 - known_bits - bits;
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) s.histogram[i] = 0;
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
    find_digit<kTogether>(s, rank);
    prefix = prefix << bits | s.digit;
    rank = s.rank;
    known_bits += bits;
    if (known_bits == 32) return {prefix, rank};
    if (!gathered && s.in_digit <= kCandidates) {
      gathered = true;
      for_each_key(scores, count, [&](std::uint32_t key) {
        if (!matches(key)) return;
        s.candidates[atomicAdd(&s.num_candidates, 1)] = key;
      });
    }
  }
}

// Scores [begin, end) of a row.
struct Stretch {
  const float* scores;  // of the row
  int begin, end;
  __device__ int num_groups() const { return (end - begin + kGroup - 1) / kGroup; }
};

// How many scores are above the threshold, and how many equal it.
struct Counts {
  int above, ties;
};

// A bit per score of a segment, in order: whether it is above the threshold, and whether it equals
// it. Four words a group.
__device__ void flag_scores(Shared& s, const Stretch& segment, const Threshold& threshold) {
  const auto [scores, begin, end] = segment;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int num_groups = segment.num_groups();
#pragma unroll 4
  for (int group = warp; group < num_groups; group += kWarps) {
    const int position = begin + group * kGroup + 4 * lane;
    float four[4] = {};
    if (position + 3 < end) {
      *reinterpret_cast<float4*>(four) =
          load_four(reinterpret_cast<const float4*>(scores + position));
    } else {
      for (int c = 0; c < 4 && position + c < end; ++c) four[c] = scores[position + c];
    }
    std::uint32_t above = 0, ties = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const std::uint32_t key = order_key(four[c]);
      const std::uint32_t bit = position + c < end ? 1u << (lane % 8 * 4 + c) : 0u;
      above |= key > threshold.key ? bit : 0u;
      ties |= key == threshold.key ? bit : 0u;
    }
#pragma unroll
    for (int step = 1; step < 8; step *= 2) {  // eight lanes make a word
      above |= __shfl_xor_sync(kAllLanes, above, step);
      ties |= __shfl_xor_sync(kAllLanes, ties, step);
    }
    if (lane % 8 == 0) {
      s.flags.above[group * 4 + lane / 8] = above;
      s.flags.ties[group * 4 + lane / 8] = ties;
    }
  }
}

// This thread's share of the words of a segment's flags.
struct Words {
  int first, last;

  __device__ explicit Words(int num_groups) {
    const int num_words = num_groups * 4, words_each = (num_words + kThreads - 1) / kThreads;
    first = min(static_cast<int>(threadIdx.x) * words_each, num_words);
    last = min(first + words_each, num_words);
  }
  __device__ Counts count(const Shared& s) const {
    Counts counts{0, 0};
    for (int word = first; word < last; ++word) {
      counts.above += __popc(s.flags.above[word]);
      counts.ties += __popc(s.flags.ties[word]);
    }
    return counts;
  }
};

// Adds the counts of the cluster's blocks before `block`, which is this one and has counted `own`.
template <bool kTogether>
__device__ void add_earlier_blocks(Shared& s, int num_blocks, int block, const Counts& own,
                                   Counts& before) {
  using Cluster = gpu::Cluster<kTogether>;
  if (threadIdx.x == 0) {
    s.num_above = own.above;
    s.num_ties = own.ties;
  }
  Cluster::sync();
#pragma unroll
  for (int earlier = 0; earlier < kClusterBlocks - 1; ++earlier) {
    const Shared& counted = Cluster::shared_of(s, min(earlier, num_blocks - 1));
    before.above += earlier < block ? counted.num_above : 0;
    before.ties += earlier < block ? counted.num_ties : 0;
  }
}

// Bits become positions, of a segment that begins at `begin`: `rank` says how many such scores
// stand before those of `words`. Of the row's that equal the threshold the first `num_ties` are
// listed.
__device__ void list_flagged(const Shared& s, const Words& words, int begin, Counts rank,
                             int num_ties, std::int32_t* out) {
  for (int word = words.first; word < words.last; ++word) {
    const std::uint32_t above = s.flags.above[word];
    for (std::uint32_t left = above | s.flags.ties[word]; left != 0; left &= left - 1) {
      const int bit = __ffs(static_cast<int>(left)) - 1;
      if ((above >> bit & 1u) != 0) {
        out[rank.above++ + min(rank.ties, num_ties)] = begin + word * 32 + bit;
      } else if (rank.ties++ < num_ties) {
        out[rank.above + rank.ties - 1] = begin + word * 32 + bit;
      }
    }
  }
}

// The positions of a block's slice in order, those above the threshold and the first few that equal
// it. The slice of a block that is not alone fits a segment.
template <bool kTogether>
__device__ void list_positions(Shared& s, int num_blocks, int block, const Stretch& slice,
                               const Threshold& threshold, std::int32_t* out) {
  Counts before{0, 0};  // in earlier segments
  int begin = slice.begin;
  do {
    const int end = min(begin + kSegment, slice.end);
    const Stretch segment{slice.scores, begin, end};
    const int num_groups = segment.num_groups();
    __syncthreads();  // candidates or flags before are done with
    flag_scores(s, segment, threshold);
    __syncthreads();
    const Words words(num_groups);
    const Counts own = words.count(s);
    Counts all, rank;  // of the segment; before this thread's words
    rank.above = before.above + sum_before(own.above, s.warp_sums[0], all.above);
    rank.ties = before.ties + sum_before(own.ties, s.warp_sums[1], all.ties);
    if (num_blocks > 1) add_earlier_blocks<kTogether>(s, num_blocks, block, all, rank);
    list_flagged(s, words, begin, rank, threshold.ties, out);
    before.above += all.above;
    before.ties += all.ties;
    begin = end;
  } while (begin < slice.end);
}

// One cluster per row.
template <bool kTogether>
__global__ void __launch_bounds__(kThreads) top_k(TopKParams p) {
  start_next();
  using Cluster = gpu::Cluster<kTogether>;
  __shared__ Shared s;
  const int num_blocks = Cluster::size(), block = Cluster::rank();
  const std::int64_t local_row = static_cast<int>(blockIdx.x) / num_blocks;
  const std::int64_t row = p.row_begin + local_row;
  wait_for_previous();
  const int visible = p.positions[row] + 1;
  std::int32_t* count =
      static_cast<std::int32_t*>(p.out.counts.data) + row * p.out.counts.row_stride;
  if (visible <= p.top_k) {
    if (threadIdx.x == 0 && block == 0) *count = -1;
    return;
  }
  const int each = ((visible + num_blocks - 1) / num_blocks + kGroup - 1) / kGroup * kGroup;
  const int begin = min(block * each, visible), end = min(begin + each, visible);
  const Stretch slice{p.scores + local_row * p.score_stride, begin, end};
  const Threshold threshold = kth_largest<kTogether>(s, slice.scores + begin, end - begin, p.top_k);
  std::int32_t* out =
      static_cast<std::int32_t*>(p.out.positions.data) + row * p.out.positions.row_stride;
  list_positions<kTogether>(s, num_blocks, block, slice, threshold, out);
  if (threadIdx.x == 0 && block == 0) *count = p.top_k;
  if (num_blocks > 1) Cluster::sync();  // others may still read this block's counts
}

// ---- Few scores, which are read once ----

struct FewShared {
  alignas(8) int histograms[3][kDigits];
  int warp_sums[2][kWarps];
  std::uint32_t digit;
  int rank;
};

// The keys of this thread, neighbours.
template <int kEach>
struct FewKeys {
  std::uint32_t keys[kEach];
  int begin, count;

  // Scores behind the last are read up to a multiple of four, which a row holds.
  __device__ void load(const float* scores, int visible) {
    begin = static_cast<int>(threadIdx.x) * kEach;
    count = min(max(visible - begin, 0), kEach);
    const auto* fours = reinterpret_cast<const float4*>(scores + begin);
    float4 four[kEach / 4];
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) {
      four[i] = {};
      if (4 * i < count) four[i] = load_four(fours + i);
    }
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) {
      keys[4 * i] = order_key(four[i].x);
      keys[4 * i + 1] = order_key(four[i].y);
      keys[4 * i + 2] = order_key(four[i].z);
      keys[4 * i + 3] = order_key(four[i].w);
    }
  }
  // Calls f(position, key) in order.
  template <typename F>
  __device__ void for_each(F&& f) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i < count) f(begin + i, keys[i]);
    }
  }
};

// Of the keys of all threads. Requires: histograms are cleared, and the block is in step.
template <int kEach>
__device__ Threshold kth_of_few(FewShared& s, const FewKeys<kEach>& own, int k) {
  std::uint32_t prefix = 0;
  int rank = k;
#pragma unroll
  for (int turn = 0; turn < 3; ++turn) {
    const int known_bits = turn * kDigitBits, bits = min(kDigitBits, 32 - known_bits);
    const int shift = 32 - known_bits - bits;
    int(&histogram)[kDigits] = s.histograms[turn];
    own.for_each([&](int, std::uint32_t key) {
      if (turn == 0 || key >> (shift + bits) == prefix) {
        atomicAdd(&histogram[key >> shift & ((1u << bits) - 1u)], 1);
      }
    });
    __syncthreads();
    const int low = kDigits - 2 - 2 * static_cast<int>(threadIdx.x);
    const int2 both = *reinterpret_cast<const int2*>(&histogram[low]);
    int total;
    const int before = sum_before(both.x + both.y, s.warp_sums[turn % 2], total);
    if (before < rank && rank <= before + both.x + both.y) {
      const bool is_high = rank <= before + both.y;
      s.digit = static_cast<std::uint32_t>(is_high ? low + 1 : low);
      s.rank = rank - before - (is_high ? 0 : both.y);
    }
    __syncthreads();
    prefix = prefix << bits | s.digit;
    rank = s.rank;
  }
  return {prefix, rank};
}

// One block per row of no more than kEach * kThreads scores: digits are counted out of registers.
template <int kEach>
__global__ void __launch_bounds__(kThreads) top_k_of_few(TopKParams p) {
  start_next();
  __shared__ FewShared s;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t local_row = blockIdx.x, row = p.row_begin + local_row;
  for (int i = thread; i < 3 * kDigits; i += kThreads) s.histograms[0][i] = 0;
  const int visible = __ldcg(p.positions + row) + 1;  // no kernel writes it
  std::int32_t* count =
      static_cast<std::int32_t*>(p.out.counts.data) + row * p.out.counts.row_stride;
  wait_for_previous();
  if (visible <= p.top_k) {
    if (thread == 0) *count = -1;
    return;
  }
  FewKeys<kEach> own;
  own.load(p.scores + local_row * p.score_stride, visible);
  __syncthreads();
  const Threshold threshold = kth_of_few(s, own, p.top_k);

  // Positions in order: those above it, and the first few that equal it.
  int num_above = 0, num_ties = 0;
  own.for_each([&](int, std::uint32_t key) {
    num_above += key > threshold.key ? 1 : 0;
    num_ties += key == threshold.key ? 1 : 0;
  });
  int total;
  const int before = sum_before(num_above | num_ties << 16, s.warp_sums[1], total);
  int above_rank = before & 0xffff, tie_rank = before >> 16;
  std::int32_t* out =
      static_cast<std::int32_t*>(p.out.positions.data) + row * p.out.positions.row_stride;
  own.for_each([&](int position, std::uint32_t key) {
    if (key > threshold.key) {
      out[above_rank++ + min(tie_rank, threshold.ties)] = position;
    } else if (key == threshold.key && tie_rank++ < threshold.ties) {
      out[above_rank + tie_rank - 1] = position;
    }
  });
  if (thread == 0) *count = p.top_k;
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
  ASSIGN_OR_RETURN(const int major, device_attribute(cudaDevAttrComputeCapabilityMajor));
  const bool together = major >= 9 && p.num_rows <= kMostClusters &&
                        p.score_stride >= kWorthCluster &&
                        p.score_stride <= std::int64_t{kClusterBlocks} * kSegment;
  const unsigned num_blocks = together ? kClusterBlocks : 1;
  LaunchShape shape{dim3(static_cast<unsigned>(p.num_rows) * num_blocks), dim3(kThreads)};
  if (p.score_stride <= 4 * kThreads) {
    return launch_kernel("top_k_of_few", top_k_of_few<4>, shape, stream, p);
  }
  if (p.score_stride <= 8 * kThreads) {
    return launch_kernel("top_k_of_few", top_k_of_few<8>, shape, stream, p);
  }
  if (p.score_stride <= 16 * kThreads) {
    return launch_kernel("top_k_of_few", top_k_of_few<16>, shape, stream, p);
  }
  shape.cluster_blocks = num_blocks;
  return launch_kernel("top_k", together ? top_k<true> : top_k<false>, shape, stream, p);
}

}  // namespace stoker::gpu
