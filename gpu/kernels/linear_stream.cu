// Large FP8 linears of decode and verify, BF16 inputs, on tensor cores: weights stream through
// shared memory without a gap, from one pair of tiles to the next.
//
// Arithmetic, as in linear_few.cu: groups of 128 columns are summed by tensor cores from zero; a
// segment's 8 groups are closed in order, acc = fma(group, scale, acc) from zero; the segments are
// added in order. So no bit depends on the rows beside a row, on matrices beside a matrix or on the
// number of blocks. Codes go times 2^-120, inputs and scales times 2^60: they must be below 2^68,
// as activations and scales are.
//
// Every block takes an equal share of the segments of all pairs (LinearStream), one after another.
// Warp w takes group w of a segment through a ring of its own, of stages of 4 KiB, which are asked
// for again as soon as they are in registers; the first ones before the kernel that writes the
// inputs is done. Warps wait for each other once a segment. Then warp r closes rows r and r + 8,
// while the others go on. Sums of pairs that blocks share go through memory, at most two pairs a
// block, and the last block to have some of them adds them.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/expert_tiles.cuh"
#include "gpu/kernels/common/linear_sums.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/linear_stream.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = kLinearSegmentGroups;  // a warp for each
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostRowTiles = 2;  // of kMmaN rows of x at once; a warp closes a row of each
static_assert(kMmaN == kWarps && kMostRowTiles * kMmaN == kLinearFewRows);
constexpr int kStages = 2;  // of a ring
constexpr int kBlocks = 2;  // that share a multiprocessor

// A stage: a group of a pair.
using C = Chunk<QuantFormat::kF8E4m3B128, kLinearGroup, kLinearGroup / 4>;
static_assert(C::kCols == kLinearGroup);
constexpr int kRingBytes = kStages * C::kBytes;

struct Matrix {
  const std::byte *payload, *scales;
  std::int32_t rows;
  TensorView y;
};
struct Plan {
  Matrix matrices[kMostLinearsJoined];
  LinearGrid grid;  // where their pairs begin among all
  LinearStream shares;
  TensorView x;
  bool aligned;
  int num_rows;            // of x, for this launch
  std::int64_t row_begin;  // of x
  LinearScratch scratch;
};

__device__ int this_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ int this_lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// A warp's groups of its block's share: one of each segment, though the last of a pair may lack it.
class GroupRing {
 public:
  __device__ GroupRing(const Plan& plan, int begin, int end, unsigned ring)
      : plan_(plan),
        sizes_(tile_sizes<C::kFormat, kLinearGroup>(plan.x.cols)),
        num_left_(end - begin),
        pair_(begin / plan.shares.num_segments),
        segment_(begin % plan.shares.num_segments),
        ring_(ring),
        lane_to_(staged_piece(C::kWords, this_lane() / 4, this_lane() % 4) * kPieceBytes),
        places_(this_lane(), 1) {
    begin_pair();
    for (int i = 0; i < kStages; ++i) push(i);
  }

  // Waits for the oldest stage: this lane's share of its weights, and the scale of its tile.
  __device__ void read(uint4 (&fours)[C::kUnits][C::kWords], float& scale) const {
    wait_for_all_copies_but<kStages - 1>();
    __syncwarp();
    const unsigned at = ring_ + oldest_ * C::kBytes;
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) read_fours<C>(at, u, places_, fours[u]);
    scale = __uint_as_float(read_4(at + places_.scales));
  }
  // Gives it up, and asks for another one in its place.
  __device__ void refill() {
    __syncwarp();
    push(oldest_);
    oldest_ = oldest_ + 1 == kStages ? 0 : oldest_ + 1;
  }

 private:
  // From segment_ on.
  __device__ void begin_pair() {
    if (num_left_ <= 0) return;
    const LinearPlace place = linear_place(plan_.grid, pair_);
    const TilePair tiles = tiles_of<false>(plan_.matrices[place.matrix], sizes_, place.pair);
    const int group = segment_ * kWarps + this_warp();
    from_ = lane_sources<C>(tiles, group, this_lane());
    has_second_ = tiles.has[1];
    turns_left_ = sizes_.num_turns - group * C::kTurns;
  }
  __device__ void push(int stage) {
    if (num_left_ > 0) {
      const unsigned to = ring_ + stage * C::kBytes;
      if (has_second_ && turns_left_ >= C::kTurns) {
        copy_whole_chunk<C>(to, from_, lane_to_, this_lane());
      } else if (turns_left_ > 0) {
        const bool has[2] = {true, has_second_};
        copy_chunk<C>(to, from_, turns_left_, has, this_lane());
      }
      --num_left_;
      from_.payload[0] += C::payload_at(kWarps);
      from_.payload[1] += C::payload_at(kWarps);
      from_.scales += C::scales_at(kWarps);
      turns_left_ -= kWarps * C::kTurns;
      if (++segment_ == plan_.shares.num_segments) {
        segment_ = 0;
        ++pair_;
        begin_pair();
      }
    }
    commit_copies();
  }

  const Plan& plan_;
  const TileSizes sizes_;
  int num_left_;  // segments to ask for; the next one:
  int pair_, segment_;
  LaneSources from_;
  bool has_second_ = true;
  int turns_left_ = 0;
  const unsigned ring_;
  const int lane_to_;
  const LanePlaces<C> places_;
  int oldest_ = 0;
};

// Adds a row's segments, an output a lane.
class RowSums {
 public:
  __device__ RowSums(const Plan& plan, int block, int begin, int end, int row)
      : plan_(plan),
        block_(block),
        begin_(begin),
        end_(end),
        row_(row),
        pair_(begin / num_segments()) {
    begin_pair();
  }

  // The next segment of the block's share.
  __device__ void add(int segment, float sum) {
    if (is_cut_) {
      __stcg(partials_ + segment * stride(), sum);
    } else {
      total_ = __fadd_rn(total_, sum);
    }
    if (segment + 1 < num_segments()) return;
    if (!is_cut_) store_output(pair_, total_);
    total_ = 0.0f;
    ++pair_;
    begin_pair();
  }

  // Pairs of which this block had the last missing segments.
  __device__ void finish() {
    const LinearStream& shares = plan_.shares;
    const int first = begin_ / num_segments(), last = (end_ - 1) / num_segments();
    __threadfence();
    __syncwarp();
    bool is_last = false;
    if (this_lane() < (first == last ? 1 : 2)) {
      const int pair = this_lane() == 0 ? first : last;
      const int added = shares.segments_of(pair, begin_, end_);
      if (added < num_segments()) {
        unsigned* const counter =
            plan_.scratch.counters +
            shares.counter(plan_.num_rows, row_, shares.first_block(block_, pair));
        is_last = static_cast<int>(atomicAdd(counter, static_cast<unsigned>(added))) + added ==
                  num_segments();
        if (is_last) *counter = 0;  // for the next launch
      }
    }
    const unsigned complete = __ballot_sync(kAllLanes, is_last);
    if (complete == 0) return;
    __threadfence();
    for (int i = 0; i < 2; ++i) {
      if ((complete >> i & 1) == 0) continue;
      const int pair = i == 0 ? first : last;
      store_output(pair, add_segments(partials(pair), stride(), num_segments()));
    }
  }

 private:
  __device__ int num_segments() const { return plan_.shares.num_segments; }
  // Of the first segment, and from one to the next.
  __device__ float* partials(int pair) const {
    const LinearStream& shares = plan_.shares;
    return plan_.scratch.partials +
           shares.partial(plan_.num_rows, 0, row_, shares.first_block(block_, pair)) + this_lane();
  }
  __device__ std::int64_t stride() const { return plan_.shares.partial(plan_.num_rows, 1, 0, 0); }

  __device__ void begin_pair() {
    const int has = plan_.shares.segments_of(pair_, begin_, end_);
    is_cut_ = has < num_segments();
    if (is_cut_ && has > 0) partials_ = partials(pair_);
  }
  __device__ void store_output(int pair, float value) const {
    const LinearPlace place = linear_place(plan_.grid, pair);
    const Matrix& m = plan_.matrices[place.matrix];
    const int output = place.pair * kLinearOutputs + this_lane();
    if (output < m.rows) store(m.y, plan_.row_begin + row_, output, value);
  }

  const Plan& plan_;
  const int block_, begin_, end_, row_;
  int pair_;
  bool is_cut_ = false;
  float* partials_ = nullptr;
  float total_ = 0.0f;
};

// This lane's inputs of a group.
__device__ void load_inputs(const Plan& plan, const bf16* row, int group, uint4 (&out)[C::kUnits]) {
  const std::int64_t begin =
      std::int64_t{group} * kLinearGroup + unit_piece(0, this_lane() % 4) * 8;
  if (plan.aligned && std::int64_t{group + 1} * kLinearGroup <= plan.x.cols) {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      out[u] = *reinterpret_cast<const uint4*>(row + begin + u * kUnitCols);
    }
  } else {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      out[u] = load_eight(row, begin + u * kUnitCols, plan.x.cols, plan.aligned);
    }
  }
}

__host__ __device__ constexpr int sums_of_segment(int num_rows) {
  return kWarps * num_rows * kSumStride;
}

// Shared memory: a ring for each warp, sums of even and odd segments
// [2][kWarps][num_rows][kSumStride].
template <int kRowTiles>
__global__ void __launch_bounds__(kThreads, kBlocks)
    linear_stream(const __grid_constant__ Plan plan) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ float scales[2][kWarps][2];  // of a tile
  const int warp = this_warp(), lane = this_lane();
  const int block = static_cast<int>(blockIdx.x);
  const int begin = plan.shares.begin(block), end = plan.shares.begin(block + 1);
  GroupRing ring(plan, begin, end, shared_address(shared) + warp * kRingBytes);
  auto* const all_sums = reinterpret_cast<float*>(shared + kWarps * kRingBytes);
  const int num_groups = static_cast<int>((plan.x.cols + kLinearGroup - 1) / kLinearGroup);
  // Past the last row of x, once more that one.
  const auto x_row = [&](int tile) {
    const int row = min(tile * kMmaN + lane / 4, plan.num_rows - 1);
    return static_cast<const bf16*>(plan.x.data) + (plan.row_begin + row) * plan.x.row_stride;
  };
  const auto sums_of_row = [&](int tile) {
    return RowSums(plan, block, begin, end, tile * kMmaN + warp);
  };
  RowSums row_sums[kMostRowTiles] = {sums_of_row(0), sums_of_row(kRowTiles - 1)};
  int segment = begin % plan.shares.num_segments;
  wait_for_previous();
  for (int side = 0, i = begin; i < end; ++i, side ^= 1) {
    float* const sums = all_sums + side * sums_of_segment(plan.num_rows);
    // 1. A group a warp.
    const int first_group = segment * kWarps;
    const bool has_group = first_group + warp < num_groups;
    uint4 x[kRowTiles][C::kUnits], fours[C::kUnits][C::kWords];
    float scale;
    if (has_group) {
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        load_inputs(plan, x_row(t), first_group + warp, x[t]);
      }
      ring.read(fours, scale);
    }
    ring.refill();
    if (has_group) {
      float group_sums[kRowTiles][2][4] = {};
#pragma unroll
      for (int u = 0; u < C::kUnits; ++u) {
        BfPair w[4][4];
        unpack_rows<C>(fours[u], w, unpack_biased<C::kFormat>);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          multiply_unit(group_sums[t], w, biased_inputs<C::kFormat>(x[t][u]));
        }
      }
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        store_sums(group_sums[t], plan.num_rows - t * kMmaN,
                   sums + (warp * plan.num_rows + t * kMmaN) * kSumStride);
      }
      if (lane % 16 == 0) scales[side][warp][lane / 16] = scale * kFp8ScaleFactor;
    }
    __syncthreads();
    // 2. The groups in order, and the segments of pairs that are the block's alone.
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const int row = t * kMmaN + warp;
      if (row >= plan.num_rows) continue;
      row_sums[t].add(segment,
                      close_groups(sums + row * kSumStride + lane, plan.num_rows * kSumStride,
                                   &scales[side][0][lane / quant::kTileRows],
                                   min(kWarps, num_groups - first_group)));
    }
    if (++segment == plan.shares.num_segments) segment = 0;
  }
  // 3. The segments of pairs that blocks share.
#pragma unroll
  for (int t = 0; t < kRowTiles; ++t) {
    if (t * kMmaN + warp < plan.num_rows) row_sums[t].finish();
  }
}

int shared_bytes_of(int num_rows) {
  return kWarps * kRingBytes + 2 * sums_of_segment(num_rows) * static_cast<int>(sizeof(float));
}

int most_blocks() { return kBlocks * num_multiprocessors(); }

}  // namespace

LinearScratchSize linear_stream_scratch(const QuantView& weight, std::int64_t rows) {
  const LinearStream most{linear_pairs(weight.rows), linear_segments(weight.cols), most_blocks()};
  const std::int64_t at_once = std::min<std::int64_t>(rows, kLinearFewRows);
  return {most.num_partials(at_once) * 4, most.num_counters(at_once) * 4};
}

Status launch_linear_stream(const LinearFewParams& params, const Stream& stream) {
  const TensorView& x = params.x;
  CHECK(params.scratch.partials != nullptr && params.scratch.counters != nullptr, "no scratch");
  Plan plan{};
  plan.x = x;
  plan.aligned = rows_aligned(x);
  plan.scratch = params.scratch;
  plan.shares.num_segments = linear_segments(x.cols);
  for (std::size_t i = 0; i < params.outputs.size(); ++i) {
    const auto& [weight, y] = params.outputs[i];
    plan.grid.first_pair[i] = plan.shares.num_pairs;
    plan.matrices[i] = {weight.payload, weight.scales, static_cast<std::int32_t>(weight.rows), y};
    plan.shares.num_pairs += linear_pairs(weight.rows);
  }
  // Some devices have room for the sums of half as many rows.
  ASSIGN_OR_RETURN(const int most_bytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  const int most_rows = shared_bytes_of(kLinearFewRows) <= most_bytes ? kLinearFewRows : kMmaN;
  for (plan.row_begin = 0; plan.row_begin < x.rows; plan.row_begin += most_rows) {
    plan.num_rows = static_cast<int>(std::min<std::int64_t>(x.rows - plan.row_begin, most_rows));
    auto* const kernel = plan.num_rows <= kMmaN ? linear_stream<1> : linear_stream<kMostRowTiles>;
    const int shared_bytes = shared_bytes_of(plan.num_rows);
    RETURN_IF_ERROR(allow_shared(kernel, shared_bytes));
    ASSIGN_OR_RETURN(const std::int64_t at_once, blocks_at_once(kernel, kThreads, shared_bytes));
    plan.shares.num_blocks = static_cast<std::int32_t>(
        std::min({at_once, std::int64_t{most_blocks()},
                  std::int64_t{plan.shares.num_pairs} * plan.shares.num_segments}));
    const dim3 grid(static_cast<unsigned>(plan.shares.num_blocks));
    RETURN_IF_ERROR(launch_kernel("linear of few rows, streamed", kernel,
                                  {grid, dim3(kThreads), shared_bytes}, stream, plan));
  }
  return {};
}

}  // namespace stoker::gpu
