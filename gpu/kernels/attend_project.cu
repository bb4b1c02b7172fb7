// Into latent space and out of it: the two halves of kv_b times a few rows each, on tensor cores. A
// block decodes one head's weight to BF16 once, before it waits for the rows, and keeps it in
// registers as fragments. A dot does not care in which order k is walked, so k is numbered such
// that what a lane loads of a row lies side by side.
#include <algorithm>
#include <type_traits>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/splits.cuh"
#include "gpu/kernels/common/unpack.cuh"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRegisters = 176;  // of a thread: a block of attend_few(), of 80, has room beside
constexpr int kRowsPerBlock = 64;
constexpr int kTurnRows = kMmaN;
constexpr int kValueRows = kWarps * kMmaM;      // values of a block
constexpr int kRowPitch = kLatentDim + kChunk;  // shifts rows against each other: no bank twice
constexpr int kValueChunks = kLatentDim / 64;
constexpr int kHeldWords = 64;  // of a thread's weights on their way: one trip to memory for FP8
constexpr int kMergedLatents = kLatentDim / kThreads;

// Loads of what no kernel writes that stay before wait_for_previous(), where __ldg() need not.
__device__ void load_early(const std::byte* at, unsigned (&out)[1]) {
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(out[0]) : "l"(at));
}
__device__ void load_early(const std::byte* at, unsigned (&out)[2]) {
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(out[0]), "=r"(out[1]) : "l"(at));
}
template <int kWords>
__device__ void load_early(const std::byte* at, unsigned (&out)[kWords]) {
  static_assert(kWords % 4 == 0);
#pragma unroll
  for (int i = 0; i < kWords; i += 4) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[i]), "=r"(out[i + 1]), "=r"(out[i + 2]), "=r"(out[i + 3])
                 : "l"(at + 4 * i));
  }
}

// `kCount` neighbouring elements of a row of a weight as they lie there.
template <QuantFormat kFormat, int kCount>
struct RawWeights {
  static constexpr int kWords = kCount / kPerWord<kFormat>;
  unsigned words[kWords];

  __device__ void load(const QuantView& w, std::int64_t row, int col) {
    constexpr int kBits = QuantSpec{kFormat}.element_bits();
    load_early(w.payload + (row * w.cols + col) * kBits / 8, words);
  }
  __device__ void clear() {
#pragma unroll
    for (unsigned& word : words) word = 0;
  }
  __device__ void decode(float scale, float (&out)[kCount]) const {
    constexpr int kEach = kPerWord<kFormat>;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      float values[kEach];
      unpack<kFormat>(words[i], values);
#pragma unroll
      for (int e = 0; e < kEach; ++e) out[i * kEach + e] = values[e] * scale;
    }
  }
};

// quant::scale_at() of a row-major matrix, without a branch.
template <QuantFormat kFormat>
__device__ float block_scale(const QuantView& w, std::int64_t row, int col) {
  if constexpr (kFormat != QuantFormat::kF8E4m3B128) return 1.0f;
  unsigned scale[1];
  load_early(w.scales + (row / 128 * (kLatentDim / 128) + col / 128) * 4, scale);
  return __uint_as_float(scale[0]);
}

// Keeps the arithmetic that made `values` before wait_for_previous(), which the compiler moves only
// stores behind: it would let a warp wait first and decode then.
template <int kCount>
__device__ void settle(const unsigned (&values)[kCount]) {
  __shared__ unsigned sink[kThreads];
  unsigned all = 0;
#pragma unroll
  for (const unsigned value : values) all ^= value;
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared_address(sink + threadIdx.x)), "r"(all)
               : "memory");
}

// Rows [lane_k, + 4 * kSteps) of a head's first half of kv_b, zeros from `nope` on: rows `group`
// and `group` + 8 of tile j are latents 2j and 2j + 1 of the lane.
template <QuantFormat kFormat, int kSteps, int kTiles>
__device__ void load_key_weights(const QuantView& w, std::int64_t head_row, int lane_k, int nope,
                                 int latent, unsigned (&out)[kSteps][kTiles][4]) {
  constexpr int kLaneLatents = 2 * kTiles;
  using Raw = RawWeights<kFormat, kLaneLatents>;
  constexpr int kAtOnce = std::min(8, kHeldWords / (4 * Raw::kWords));  // steps, of one scale
  static_assert(kSteps % kAtOnce == 0);
#pragma unroll
  for (int begin = 0; begin < kSteps; begin += kAtOnce) {
    const int k = lane_k + 4 * begin;
    const bool valid = k < nope;  // all of them: nope is a multiple of 32
    const std::int64_t row = head_row + (valid ? k : 0);
    const float scale = block_scale<kFormat>(w, row, latent);
    Raw raw[kAtOnce][4];
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) raw[s][i].load(w, row + 4 * s + i, latent);
    }
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) {
      float values[4][kLaneLatents];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!valid) raw[s][i].clear();
        raw[s][i].decode(scale, values[i]);
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int from = i / 2 * 2, l = 2 * j + i % 2;
          out[begin + s][j][i] = pack_bf16(values[from][l], values[from + 1][l]);
        }
      }
    }
  }
}

// One block per head, stretch of latents and rows. kSteps: of k; 16 * kSteps is at least nope_dim,
// and a lane holds a quarter of that for a few latents.
template <QuantFormat kFormat, int kSteps>
__global__ void __maxnreg__(kRegisters) absorb_queries(AttendLatentParams a) {
  start_next();
  constexpr int kTiles = 32 / kSteps, kLaneLatents = 2 * kTiles;
  const AttendRowsParams& p = a.rows;
  const int nope = p.dims.nope_dim, head = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const FragmentLane lane = fragment_lane();
  const int latent =
      (static_cast<int>(blockIdx.y) * kWarps + warp) * kTiles * kMmaM + lane.group * kLaneLatents;
  const int lane_k = lane.member * 4 * kSteps;
  unsigned weights[kSteps][kTiles][4];
  load_key_weights<kFormat>(p.kv_b, std::int64_t{head} * (nope + p.dims.value_dim), lane_k, nope,
                            latent, weights);
  settle(reinterpret_cast<const unsigned(&)[kSteps * kTiles * 4]>(weights));

  // Eight rows at a time.
  const std::int64_t stride = p.queries.row_stride;
  const auto* query =
      static_cast<const bf16*>(p.queries.data) + a.row_begin * stride + head * (nope + kLatentRope);
  const int row_begin = static_cast<int>(blockIdx.z) * kRowsPerBlock;
  const int row_end = min(row_begin + kRowsPerBlock, a.num_rows);
  bf16* const out = a.queries + std::int64_t{head} * kLatentWidth;
  const std::int64_t out_stride = std::int64_t{p.dims.num_heads} * kLatentWidth;
  wait_for_previous();
  for (int begin = row_begin; begin < row_end; begin += kTurnRows) {
    const bf16* from = query + min(begin + lane.group, row_end - 1) * stride + lane_k;
    uint4 x[kSteps / 2];
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      x[i] = {};
      if (lane_k + 8 * i < nope) x[i] = *reinterpret_cast<const uint4*>(from + 8 * i);
    }
    float c[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint4& both = x[step / 2];
      const unsigned low = step % 2 == 0 ? both.x : both.z, high = step % 2 == 0 ? both.y : both.w;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) mma(c[j], weights[step][j], low, high);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int row = begin + 2 * lane.member + n;
      if (row >= row_end) continue;
      unsigned pairs[kTiles];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) pairs[j] = pack_bf16(c[j][n], c[j][2 + n]);
      bf16* to = out + row * out_stride + latent;
      if constexpr (kTiles == 4) {
        *reinterpret_cast<uint4*>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
      } else {
        *reinterpret_cast<uint2*>(to) = {pairs[0], pairs[1]};
      }
    }
  }
  if (blockIdx.y != 0) return;
  constexpr int kRopeChunks = kLatentRope / kChunk;  // as they are
  for (int i = thread; i < (row_end - row_begin) * kRopeChunks; i += kThreads) {
    const int row = row_begin + i / kRopeChunks, at = i % kRopeChunks * kChunk;
    *reinterpret_cast<uint4*>(out + row * out_stride + kLatentDim + at) =
        *reinterpret_cast<const uint4*>(query + row * stride + nope + at);
  }
}

// Rows `row` and `row` + 8 of kv_b: of every 64 of k a lane holds 16 in a row.
template <QuantFormat kFormat>
__device__ void load_value_weights(const QuantView& w, std::int64_t row,
                                   unsigned (&out)[kValueChunks][4][4]) {
  using Raw = RawWeights<kFormat, 16>;
  constexpr int kAtOnce = kHeldWords / (2 * Raw::kWords);  // chunks
  static_assert(kValueChunks % kAtOnce == 0);
  const int lane_col = 16 * fragment_lane().member;
#pragma unroll
  for (int begin = 0; begin < kValueChunks; begin += kAtOnce) {
    Raw raw[kAtOnce][2];
    float scales[kAtOnce / 2];  // of 128 columns each
#pragma unroll
    for (int c = 0; c < kAtOnce; c += 2) {
      scales[c / 2] = block_scale<kFormat>(w, row, 64 * (begin + c));
    }
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
      const int col = 64 * (begin + c) + lane_col;
      raw[c][0].load(w, row, col);
      raw[c][1].load(w, row + 8, col);
    }
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[16];
        raw[c][half].decode(scales[c / 2], values);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const float* four = values + 4 * step;
          out[begin + c][step][half] = pack_bf16(four[0], four[1]);
          out[begin + c][step][2 + half] = pack_bf16(four[2], four[3]);
        }
      }
    }
  }
}

// Latents of rows [begin, + num_rows) of a head, to `rows` [num_rows, kRowPitch].
template <bool kMerges>
__device__ void load_rows(const AttendLatentParams& a, int begin, int num_rows, int head,
                          bf16* rows) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kMerges) {
    float sums[kMergedLatents];
    merge_splits(a, begin, head, a.max_splits, sums);
    static_assert(kMergedLatents == 2);
    reinterpret_cast<unsigned*>(rows)[thread] = pack_bf16(sums[0], sums[1]);
  } else {
    constexpr int kRowChunks = kLatentDim / kChunk;
    const std::int64_t num_heads = a.rows.dims.num_heads;
    for (int i = thread; i < num_rows * kRowChunks; i += kThreads) {
      const int r = i / kRowChunks, chunk = i % kRowChunks;
      copy_async(shared_address(rows + r * kRowPitch + chunk * kChunk),
                 a.queries + ((begin + r) * num_heads + head) * kLatentWidth + chunk * kChunk);
    }
    wait_for_copies();
  }
}

// One block per head, stretch of values and rows. kMerges: of the only row.
template <QuantFormat kFormat, bool kMerges>
__global__ void __maxnreg__(kRegisters) project_values(AttendLatentParams a) {
  start_next();
  extern __shared__ __align__(16) bf16 rows[];  // [rows of the block, kRowPitch]
  const AttendRowsParams& p = a.rows;
  const int value = p.dims.value_dim, head = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const FragmentLane lane = fragment_lane();
  const int first = static_cast<int>(blockIdx.y) * kValueRows + warp * kMmaM;  // of the warp
  const bool works = first < value;
  const std::int64_t head_row = std::int64_t{head} * (p.dims.nope_dim + value) + p.dims.nope_dim;
  unsigned weights[kValueChunks][4][4];
  load_value_weights<kFormat>(p.kv_b, head_row + (works ? first : 0) + lane.group, weights);
  settle(reinterpret_cast<const unsigned(&)[kValueChunks * 16]>(weights));

  const int begin = static_cast<int>(blockIdx.z) * kRowsPerBlock;
  const int num_rows = kMerges ? 1 : min(kRowsPerBlock, a.num_rows - begin);
  wait_for_previous();
  load_rows<kMerges>(a, begin, num_rows, head, rows);
  __syncthreads();
  if (!works) return;
  for (int turn = 0; turn < num_rows; turn += kTurnRows) {
    const bf16* row = rows + min(turn + lane.group, num_rows - 1) * kRowPitch + 16 * lane.member;
    float c[4][4] = {};  // chains, a quarter as long
#pragma unroll
    for (int i = 0; i < kValueChunks; ++i) {
      const uint4 x = *reinterpret_cast<const uint4*>(row + 64 * i);
      const uint4 y = *reinterpret_cast<const uint4*>(row + 64 * i + kChunk);
      mma(c[0], weights[i][0], x.x, x.y);
      mma(c[1], weights[i][1], x.z, x.w);
      mma(c[2], weights[i][2], y.x, y.y);
      mma(c[3], weights[i][3], y.z, y.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row_of_block = turn + 2 * lane.member + i % 2;
      if (row_of_block >= num_rows) continue;
      store(p.out, a.row_begin + begin + row_of_block,
            std::int64_t{head} * value + first + lane.group + i / 2 * 8,
            __fadd_rn(__fadd_rn(c[0][i], c[1][i]), __fadd_rn(c[2][i], c[3][i])));
    }
  }
}

template <typename Kernel>
Status launch_projection(Kernel* kernel, const AttendLatentParams& a, int pieces, int shared_bytes,
                         const Stream& stream) {
  RETURN_IF_ERROR(allow_shared(kernel, shared_bytes));
  const dim3 grid(static_cast<unsigned>(a.rows.dims.num_heads), static_cast<unsigned>(pieces),
                  blocks_for(a.num_rows, kRowsPerBlock));
  return launch_kernel("attention: projection of a head", kernel,
                       {grid, dim3(kThreads), shared_bytes}, stream, a);
}

// fn(std::integral_constant<QuantFormat, ...>) for a format that kv_b may have.
template <typename F>
Status for_weight_format(QuantFormat format, F&& fn) {
  switch (format) {
    case QuantFormat::kF32:
      return fn(std::integral_constant<QuantFormat, QuantFormat::kF32>{});
    case QuantFormat::kF16:
      return fn(std::integral_constant<QuantFormat, QuantFormat::kF16>{});
    case QuantFormat::kBf16:
      return fn(std::integral_constant<QuantFormat, QuantFormat::kBf16>{});
    default:
      return fn(std::integral_constant<QuantFormat, QuantFormat::kF8E4m3B128>{});
  }
}

}  // namespace

Status launch_absorb_queries(const AttendLatentParams& params, const Stream& stream) {
  return for_weight_format(params.rows.kv_b.spec.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    if (params.rows.dims.nope_dim <= 128) {
      return launch_projection(absorb_queries<kFormat, 8>, params, 1, 0, stream);
    }
    return launch_projection(absorb_queries<kFormat, 16>, params, 2, 0, stream);
  });
}

Status launch_project_values(const AttendLatentParams& params, const Stream& stream) {
  const int pieces = (params.rows.dims.value_dim + kValueRows - 1) / kValueRows;
  const int shared_bytes =
      std::min(params.num_rows, kRowsPerBlock) * kRowPitch * static_cast<int>(sizeof(bf16));
  return for_weight_format(params.rows.kv_b.spec.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    auto* const kernel =
        params.projection_merges() ? project_values<kFormat, true> : project_values<kFormat, false>;
    return launch_projection(kernel, params, pieces, shared_bytes, stream);
  });
}

}  // namespace stoker::gpu
