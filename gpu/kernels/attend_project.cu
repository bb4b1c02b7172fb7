// Into latent space and out of it: the two halves of kv_b times a few rows each, on tensor cores. A
// block decodes its piece of one head's weight to BF16 once, before it waits for the rows, and
// multiplies it with all of them.
#include <type_traits>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRowsPerTurn = 32;
constexpr int kRowsPerBlock = 64;
constexpr int kAbsorbCols = kWarps * kMmaM;  // latents of a block
constexpr int kValueRows = 2 * kMmaM;        // values of a block
constexpr int kPad = kChunk;                 // shifts rows against each other: no bank twice

constexpr int padded(int values) { return values + kPad; }

// Rows [row, + num_rows), columns [col, + kCols) of `w` as BF16 to `out` [num_rows, padded(kCols)].
template <QuantFormat kFormat, int kCols>
__device__ void decode_weight(const QuantView& w, std::int64_t row, int num_rows, int col,
                              bf16* out) {
  constexpr int kBits = QuantSpec{kFormat}.element_bits();
  constexpr int kPerLoad = 128 / kBits;
  constexpr int kLoads = kCols / kPerLoad;  // of a row
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * kLoads; i += kThreads) {
    const int r = i / kLoads, c = i % kLoads * kPerLoad;
    const uint4 raw = __ldg(
        reinterpret_cast<const uint4*>(w.payload + ((row + r) * w.cols + col + c) * kBits / 8));
    const float scale = quant::scale_at(w, row + r, col + c);
    const auto value = [&](int e) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&raw);
      if constexpr (kFormat == QuantFormat::kF8E4m3B128) {
        return quant::fp8_to_f32_unbiased(static_cast<std::uint8_t>(bytes[e])) * 0x1p120f * scale;
      } else {
        return quant::decode_element(kFormat, bytes, e) * scale;
      }
    };
    unsigned pairs[kPerLoad / 2];
#pragma unroll
    for (int e = 0; e < kPerLoad; e += 2) pairs[e / 2] = pack_bf16(value(e), value(e + 1));
    bf16* to = out + r * padded(kCols) + c;
    if constexpr (kPerLoad == 4) {
      *reinterpret_cast<uint2*>(to) = {pairs[0], pairs[1]};
    } else {
#pragma unroll
      for (int e = 0; e < kPerLoad / 2; e += 4) {
        reinterpret_cast<uint4*>(to)[e / 4] = {pairs[e], pairs[e + 1], pairs[e + 2], pairs[e + 3]};
      }
    }
  }
}

// Rows of `width` values to `out` [num_rows, padded(width)].
__device__ void load_rows(const bf16* x, std::int64_t stride, int num_rows, int width, bf16* out) {
  const int chunks = width / kChunk;
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * chunks; i += kThreads) {
    const int r = i / chunks, c = i % chunks * kChunk;
    copy_async(shared_address(out + r * padded(width) + c), x + r * stride + c);
  }
}

// Shared memory: weight [nope, padded(kAbsorbCols)], rows [kRowsPerTurn, padded(nope)].
template <QuantFormat kFormat>
__global__ void __launch_bounds__(kThreads) absorb_queries(AttendLatentParams a) {
  start_next();
  extern __shared__ __align__(16) bf16 shared_values[];
  const AttendRowsParams& p = a.rows;
  const int nope = p.dims.nope_dim;
  const int head = static_cast<int>(blockIdx.x), col = static_cast<int>(blockIdx.y) * kAbsorbCols;
  bf16* weight = shared_values;
  bf16* rows = weight + nope * padded(kAbsorbCols);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int matrix = lane / 8, matrix_row = lane % 8;
  const std::int64_t query_stride = p.queries.row_stride;
  const auto* query = static_cast<const bf16*>(p.queries.data) + a.row_begin * query_stride +
                      head * (nope + kLatentRope);
  const int row_begin = static_cast<int>(blockIdx.z) * kRowsPerBlock;
  const int row_end = min(row_begin + kRowsPerBlock, a.num_rows);
  decode_weight<kFormat, kAbsorbCols>(p.kv_b, std::int64_t{head} * (nope + p.dims.value_dim), nope,
                                      col, weight);
  wait_for_previous();
  load_rows(query + row_begin * query_stride, query_stride, min(kRowsPerTurn, row_end - row_begin),
            nope, rows);
  for (int begin = row_begin; begin < row_end; begin += kRowsPerTurn) {
    const int num_rows = min(kRowsPerTurn, row_end - begin);
    if (begin != row_begin) {
      __syncthreads();
      load_rows(query + begin * query_stride, query_stride, num_rows, nope, rows);
    }
    wait_for_copies();
    __syncthreads();
    // All tiles of rows in step, so that a fragment of the weight is read once.
    constexpr int kRowTiles = kRowsPerTurn / kMmaN;
    float c[kRowTiles][4] = {};
    for (int k = 0; k < nope; k += 2 * kMmaK) {
      unsigned w[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int w_row = k + i * kMmaK + matrix / 2 * 8 + matrix_row;
        load_matrices_transposed(w[i], shared_address(weight + w_row * padded(kAbsorbCols) +
                                                      warp * kMmaM + matrix % 2 * 8));
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if (n * kMmaN >= num_rows) break;
        unsigned b[4];
        load_matrices(b, shared_address(rows + (n * kMmaN + matrix_row) * padded(nope) + k +
                                        matrix * kChunk));
        mma(c[n], w[0], b[0], b[1]);
        mma(c[n], w[1], b[2], b[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      if (n * kMmaN >= num_rows) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = n * kMmaN + 2 * (lane % 4) + i % 2;
        if (row >= num_rows) continue;
        a.queries[(std::int64_t{begin + row} * p.dims.num_heads + head) * kLatentWidth + col +
                  warp * kMmaM + lane / 4 + i / 2 * 8] = to_bf16(c[n][i]);
      }
    }
    if (col == 0) {  // the rope part as it is
      for (int i = thread; i < num_rows * kLatentRope; i += kThreads) {
        const int row = begin + i / kLatentRope, d = i % kLatentRope;
        a.queries[(std::int64_t{row} * p.dims.num_heads + head) * kLatentWidth + kLatentDim + d] =
            query[row * query_stride + nope + d];
      }
    }
  }
}

// Shared memory: weight [kValueRows, padded(kLatentDim)], rows [kRowsPerTurn, padded(kLatentDim)].
template <QuantFormat kFormat>
__global__ void __launch_bounds__(kThreads) project_values(AttendLatentParams a) {
  start_next();
  extern __shared__ __align__(16) bf16 shared_values[];
  const AttendRowsParams& p = a.rows;
  const int nope = p.dims.nope_dim, value = p.dims.value_dim;
  const int head = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * kValueRows;
  bf16* weight = shared_values;
  bf16* rows = weight + kValueRows * padded(kLatentDim);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int matrix = lane / 8, matrix_row = lane % 8;
  const int m = warp % 2 * kMmaM, n = warp / 2 * kMmaN;
  const std::int64_t mixed_stride = std::int64_t{p.dims.num_heads} * kLatentWidth;
  const bf16* mixed = a.queries + std::int64_t{head} * kLatentWidth;
  const int row_begin = static_cast<int>(blockIdx.z) * kRowsPerBlock;
  const int row_end = min(row_begin + kRowsPerBlock, a.num_rows);
  const auto load_turn = [&](int begin) {
    load_rows(mixed + begin * mixed_stride, mixed_stride, min(kRowsPerTurn, row_end - begin),
              kLatentDim, rows);
  };
  decode_weight<kFormat, kLatentDim>(p.kv_b, std::int64_t{head} * (nope + value) + nope + first,
                                     kValueRows, 0, weight);
  wait_for_previous();
  load_turn(row_begin);
  for (int begin = row_begin; begin < row_end; begin += kRowsPerTurn) {
    const int num_rows = min(kRowsPerTurn, row_end - begin);
    if (begin != row_begin) {
      __syncthreads();
      load_turn(begin);
    }
    wait_for_copies();
    __syncthreads();
    if (n >= num_rows) continue;
    float even[4] = {}, odd[4] = {};  // two chains, half as long
#pragma unroll 4
    for (int k = 0; k < kLatentDim; k += 2 * kMmaK) {
      unsigned b[4], w[4];
      load_matrices(
          b, shared_address(rows + (n + matrix_row) * padded(kLatentDim) + k + matrix * kChunk));
      const bf16* at =
          weight + (m + matrix % 2 * 8 + matrix_row) * padded(kLatentDim) + k + matrix / 2 * kChunk;
      load_matrices(w, shared_address(at));
      mma(even, w, b[0], b[1]);
      load_matrices(w, shared_address(at + kMmaK));
      mma(odd, w, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = n + 2 * (lane % 4) + i % 2;
      if (row >= num_rows) continue;
      store(p.out, a.row_begin + begin + row,
            std::int64_t{head} * value + first + m + lane / 4 + i / 2 * 8,
            __fadd_rn(even[i], odd[i]));
    }
  }
}

template <typename Kernel>
Status launch_projection(Kernel* kernel, const AttendLatentParams& a, int pieces, int shared_bytes,
                         const Stream& stream) {
  RETURN_IF_ERROR(
      cuda_status(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "attention: shared memory for a head's weight"),
      "{} bytes", shared_bytes);
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

constexpr int bytes_of(int values) { return values * static_cast<int>(sizeof(bf16)); }

}  // namespace

Status launch_absorb_queries(const AttendLatentParams& params, const Stream& stream) {
  const int nope = params.rows.dims.nope_dim;
  const int shared = bytes_of(nope * padded(kAbsorbCols) + kRowsPerTurn * padded(nope));
  return for_weight_format(params.rows.kv_b.spec.format, [&](auto format) {
    return launch_projection(absorb_queries<decltype(format)::value>, params,
                             kLatentDim / kAbsorbCols, shared, stream);
  });
}

Status launch_project_values(const AttendLatentParams& params, const Stream& stream) {
  constexpr int kShared = bytes_of((kValueRows + kRowsPerTurn) * padded(kLatentDim));
  return for_weight_format(params.rows.kv_b.spec.format, [&](auto format) {
    return launch_projection(project_values<decltype(format)::value>, params,
                             params.rows.dims.value_dim / kValueRows, kShared, stream);
  });
}

}  // namespace stoker::gpu
