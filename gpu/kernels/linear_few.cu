// Dense linears of decode and verify: BF16 inputs with FP8 or BF16 weights on tensor cores. Large
// FP8 matrices are left to linear_stream.cu.
//
// Arithmetic, which depends on the shape alone: groups of 128 columns are summed by tensor cores
// from zero; a segment's 8 groups are closed in order, acc = fma(group, scale, acc) from zero; the
// segments are added in order. How many rows stand beside a row, and how many blocks share a row's
// segments, does not touch a bit; nor do matrices of the same inputs that run beside it.
//
// A warp takes one group of 32 outputs (two tiles): the rows of x are the narrow side of the
// product, so one to eight of them cost the same, and a lane reads 16 bytes of weights at a time.
// In an A fragment, lane 4g + t gives rows g and g + 8, here dwords 2m and 2m + 1 of quad g of the
// pair of tiles; it gives columns 8t .. 8t + 7 of every 32, to two products. The order of columns
// within a product is free, as long as inputs and weights agree.
#include <algorithm>
#include <array>

#include "gpu/error.h"
#include "gpu/kernels/common/expert_tiles.cuh"
#include "gpu/kernels/common/linear_sums.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/linear_stream.h"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = kLinearSegmentGroups;  // a warp for each
constexpr int kThreads = kWarps * kWarp;
constexpr int kGroup = kLinearGroup;
constexpr int kStretch = 32;  // columns of two products
constexpr int kStretches = kGroup / kStretch;
constexpr int kOutputs = kLinearOutputs;

// Blocks that share a multiprocessor: what their registers allow, 4 or 8 KiB of weights being on
// their way to each warp.
constexpr int blocks_per_multiprocessor(QuantFormat format, int token_tiles) {
  return format == QuantFormat::kF8E4m3B128 && token_tiles == 1 ? 3 : 2;
}

struct Matrix {
  QuantView weight;
  TensorView y;
  LinearScratch scratch;  // its own part
  std::int32_t num_pairs;
};
struct Plan {
  Matrix matrices[kMostLinearsJoined];
  LinearCut cut;
  LinearGrid grid;
  TensorView x;
  bool aligned;
  bool is_sibling, has_sibling;
  int num_rows;            // of x, for this launch
  std::int64_t row_begin;  // of x
};

// Weights are read once: they would push the inputs, which every block reads, out of the cache.
__device__ uint4 load_once(const uint4* at) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(at));
  return out;
}

// The C fragments of a group: [n] rows 8n .. 8n + 7 of x, [m] holds dwords 2m and 2m + 1.
template <int kTokenTiles>
struct GroupSums {
  float at[kTokenTiles][2][4] = {};
};

// `waits`: weights are asked for before the kernel that writes the inputs is done.
template <QuantFormat kFormat, int kTokenTiles>
__device__ void sum_group(const Plan& plan, const std::byte* payload, const quant::Tile16& tile,
                          std::int64_t tile_idx, std::int64_t begin, bool waits,
                          GroupSums<kTokenTiles>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  constexpr int kWords = kWordsPerEight<kFormat>;
  const std::int64_t row = tile_idx * quant::kTileRows + 4 * g;
  const bool has_row = row / quant::kTileRows < tile.num_tiles();
  // 1. Everything that comes from memory.
  uint4 weights[kStretches][kWords];
  uint4 inputs[kStretches][kTokenTiles];
#pragma unroll
  for (int s = 0; s < kStretches; ++s) {
    const std::int64_t k = begin + s * kStretch + 8 * t;
    const auto* at = reinterpret_cast<const uint4*>(payload + tile.dword_offset(row, k));
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const bool inside = has_row && k + w * kPerWord<kFormat> < tile.padded_cols();
      weights[s][w] = inside ? load_once(at + w * 4) : uint4{};
    }
  }
  if (waits) wait_for_previous();
#pragma unroll
  for (int s = 0; s < kStretches; ++s) {
    const std::int64_t k = begin + s * kStretch + 8 * t;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      inputs[s][n] = {};
      const int x_row = kMmaN * n + g;
      if (x_row < plan.num_rows) {
        const bf16* const x =
            static_cast<const bf16*>(plan.x.data) + (plan.row_begin + x_row) * plan.x.row_stride;
        inputs[s][n] = plan.is_sibling ? load_eight<true>(x, k, plan.x.cols, plan.aligned)
                                       : load_eight(x, k, plan.x.cols, plan.aligned);
      }
    }
  }
  // 2. Products.
#pragma unroll
  for (int s = 0; s < kStretches; ++s) {
    BfPair x[kTokenTiles][4];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) arrange_inputs<kFormat>(inputs[s][n], x[n]);
    BfPair w[4][4];  // [dword][pair of columns]
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      unsigned words[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const uint4& four = weights[s][i];
        words[i] = r == 0 ? four.x : r == 1 ? four.y : r == 2 ? four.z : four.w;
      }
      unpack_eight<kFormat>(words, w[r]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const unsigned a[4] = {w[2 * m][2 * half], w[2 * m + 1][2 * half], w[2 * m][2 * half + 1],
                               w[2 * m + 1][2 * half + 1]};
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          mma(sums.at[n][m], a, x[n][2 * half], x[n][2 * half + 1]);
        }
      }
    }
  }
}

// The sums of a segment's groups, for the threads that close them.
template <int kTokenTiles>
struct SegmentSums {
  float groups[kWarps][kTokenTiles * kMmaN * kSumStride];
  float scales[kWarps][2];  // of a tile
};

// Block (i, j): the i-th pair of tiles of all matrices, the j-th share of its segments.
template <QuantFormat kFormat, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor(kFormat, kTokenTiles))
    linear_few(const __grid_constant__ Plan plan) {
  if (!plan.has_sibling) start_next();
  __shared__ __align__(16) SegmentSums<kTokenTiles> shared[2];  // of even and odd segments
  __shared__ bool is_last;
  const LinearPlace place = linear_place(plan.grid, static_cast<int>(blockIdx.x));
  const Matrix& m = plan.matrices[place.matrix];
  const quant::Tile16 tile{m.weight.rows, plan.x.cols, QuantSpec{kFormat, kGroup}};
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t tile_idx = std::int64_t{place.pair} * 2;
  // Values of this thread when groups are closed: output `lane`, rows warp + i * kWarps of x.
  constexpr int kValues = kTokenTiles * kMmaN / kWarps;
  float total[kValues] = {};
  const int segment_begin = static_cast<int>(blockIdx.y) * plan.cut.segments_per_block;
  const int segment_end = min(segment_begin + plan.cut.segments_per_block, plan.cut.num_segments);
  const bool alone = plan.cut.num_shares == 1;
  const auto partial = [&](int segment, int row) -> float* {
    return m.scratch.partials +
           linear_partial(m.num_pairs, plan.num_rows, segment, row, place.pair) + lane;
  };
  for (int segment = segment_begin; segment < segment_end; ++segment) {
    SegmentSums<kTokenTiles>& mine = shared[segment % 2];
    const bool waits = segment == segment_begin && !plan.is_sibling;
    // 1. A group a warp.
    const std::int64_t begin = std::int64_t{segment} * kLinearSegmentCols;
    const int num_groups =
        static_cast<int>(min(std::int64_t{kWarps}, (plan.x.cols - begin + kGroup - 1) / kGroup));
    if (warp < num_groups) {
      const std::int64_t group_begin = begin + warp * kGroup;
      const std::int64_t scale_tile = tile_idx + lane;
      float scale = 1.0f;
      if (QuantSpec{kFormat}.has_scales() && lane < 2 && scale_tile < tile.num_tiles()) {
        scale = quant::decode_scale(kFormat, m.weight.scales,
                                    tile.scale_index(scale_tile * quant::kTileRows, group_begin));
      }
      GroupSums<kTokenTiles> sums;
      sum_group<kFormat, kTokenTiles>(plan, m.weight.payload, tile, tile_idx, group_begin, waits,
                                      sums);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        store_sums(sums.at[n], plan.num_rows - n * kMmaN,
                   mine.groups[warp] + n * kMmaN * kSumStride);
      }
      if (lane < 2) mine.scales[warp][lane] = scale;
    } else if (waits) {
      wait_for_previous();
    }
    __syncthreads();
    if (plan.has_sibling) start_next();  // again does nothing

    // 2. The groups in order.
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int row = warp + i * kWarps;
      if (row >= plan.num_rows) continue;
      const float acc =
          close_groups(mine.groups[0] + row * kSumStride + lane, kTokenTiles * kMmaN * kSumStride,
                       &mine.scales[0][lane / quant::kTileRows], num_groups);
      if (alone) {
        total[i] = __fadd_rn(total[i], acc);
      } else {
        __stcg(partial(segment, row), acc);
      }
    }
  }
  // 3. The segments in order, by the last block that has some of them.
  if (!alone) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* const counter = m.scratch.counters + place.pair;
      is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(plan.cut.num_shares) - 1;
      if (is_last) *counter = 0;  // for the next launch
    }
    __syncthreads();
    if (!is_last) {
      if (plan.is_sibling) wait_for_previous();
      return;
    }
    __threadfence();
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int row = warp + i * kWarps;
      if (row >= plan.num_rows) continue;
      total[i] =
          add_segments(partial(0, row), partial(1, row) - partial(0, row), plan.cut.num_segments);
    }
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int row = warp + i * kWarps;
    const std::int64_t col = std::int64_t{place.pair} * kOutputs + lane;
    if (row < plan.num_rows && col < m.weight.rows) store(m.y, plan.row_begin + row, col, total[i]);
  }
  if (plan.is_sibling) wait_for_previous();
}

template <QuantFormat kFormat>
Status launch_rows(const Plan& plan, dim3 grid, const Stream& stream) {
  if (plan.num_rows <= kMmaN) {
    return launch_kernel("linear of few rows", linear_few<kFormat, 1>, {grid, dim3(kThreads)},
                         stream, plan);
  }
  return launch_kernel("linear of few rows", linear_few<kFormat, 2>, {grid, dim3(kThreads)}, stream,
                       plan);
}

std::int64_t rows_at_once(std::int64_t rows) {
  return std::min<std::int64_t>(rows, kLinearFewRows);
}

// One of the matrices, as it is asked for.
void check_output(const LinearFewOutput& output, const TensorView& x, QuantFormat format) {
  const QuantView& w = output.weight;
  const TensorView& y = output.y;
  CHECK(suits_linear_few(w, x.dtype) && w.spec.format == format && is_activation(y),
        "{} beside {} of {} to {}", quant_format_name(w.spec.format), quant_format_name(format),
        dtype_name(x.dtype), dtype_name(y.dtype));
  CHECK(w.layout == WeightLayout::kTile16 && w.device != kHost &&
            reinterpret_cast<std::uintptr_t>(w.payload) % 16 == 0,
        "not an aligned tile16 weight on a device");
  CHECK(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows, "[{}, {}] x [{}, {}] -> [{}, {}]",
        x.rows, x.cols, w.rows, w.cols, y.rows, y.cols);
}

// Matrices that are cut.
Status launch_cut(const LinearFewParams& params, const Stream& stream) {
  const TensorView& x = params.x;
  Plan plan{};
  plan.x = x;
  plan.aligned = rows_aligned(x);
  CHECK(x.rows <= kLinearFewRows || (!params.is_sibling && !params.has_sibling),
        "{} rows of a launch beside another", x.rows);
  plan.is_sibling = params.is_sibling;
  plan.has_sibling = params.has_sibling;
  const QuantFormat format = params.outputs.front().weight.spec.format;
  const std::int32_t num_segments = linear_segments(x.cols);
  int num_matrices = 0, num_pairs = 0;
  LinearScratch scratch = params.scratch;
  for (const LinearFewOutput& output : params.outputs) {
    const std::int32_t pairs = linear_pairs(output.weight.rows);
    plan.grid.first_pair[num_matrices] = num_pairs;
    plan.matrices[num_matrices++] = {output.weight, output.y, scratch, pairs};
    num_pairs += pairs;
    scratch.partials += linear_partials(pairs, num_segments, rows_at_once(x.rows));
    scratch.counters += pairs;
  }
  plan.cut = cut_linear(num_pairs, num_segments,
                        std::int64_t{blocks_per_multiprocessor(format, 1)} * num_multiprocessors(),
                        params.has_sibling);
  CHECK(plan.cut.num_shares == 1 ||
            (params.scratch.partials != nullptr && params.scratch.counters != nullptr),
        "no scratch for {} of {} segments", plan.cut.segments_per_block, num_segments);
  const dim3 grid(static_cast<unsigned>(num_pairs), static_cast<unsigned>(plan.cut.num_shares));
  const bool is_bf16 = format == QuantFormat::kBf16;
  for (plan.row_begin = 0; plan.row_begin < x.rows; plan.row_begin += kLinearFewRows) {
    plan.num_rows = static_cast<int>(rows_at_once(x.rows - plan.row_begin));
    RETURN_IF_ERROR(is_bf16 ? launch_rows<QuantFormat::kBf16>(plan, grid, stream)
                            : launch_rows<QuantFormat::kF8E4m3B128>(plan, grid, stream));
  }
  return {};
}

}  // namespace

bool suits_linear_few(const QuantView& weight, DType x) {
  return x == DType::kBf16 && weight.spec.group == kGroup &&
         (weight.spec.format == QuantFormat::kBf16 ||
          weight.spec.format == QuantFormat::kF8E4m3B128);
}

LinearScratchSize linear_few_scratch(const QuantView& weight, std::int64_t rows) {
  if (streams_linear(weight)) return linear_stream_scratch(weight, rows);
  const std::int64_t num_pairs = linear_pairs(weight.rows);
  return {linear_partials(num_pairs, linear_segments(weight.cols), rows_at_once(rows)) * 4,
          num_pairs * 4};
}

Status launch_linear_few(const LinearFewParams& params, const Stream& stream) {
  CHECK(!params.outputs.empty() && params.outputs.size() <= kMostLinearsJoined,
        "{} linears at once", params.outputs.size());
  std::array<LinearFewOutput, kMostLinearsJoined> streamed, cut;
  std::size_t num_streamed = 0, num_cut = 0;
  for (const LinearFewOutput& output : params.outputs) {
    check_output(output, params.x, params.outputs.front().weight.spec.format);
    (streams_linear(output.weight) ? streamed[num_streamed++] : cut[num_cut++]) = output;
  }
  // One after the other, in the same scratch.
  if (num_streamed > 0) {
    RETURN_IF_ERROR(
        launch_linear_stream({{streamed.data(), num_streamed}, params.x, params.scratch}, stream));
  }
  if (num_cut == 0) return {};
  LinearFewParams rest = params;
  rest.outputs = {cut.data(), num_cut};
  rest.is_sibling = params.is_sibling && num_streamed == 0;
  return launch_cut(rest, stream);
}

}  // namespace stoker::gpu
