// What is done to a row of activations between linears, written once for the kernels of single
// operations and for the one that does several of them (attention_inputs.cu). With each what a
// launcher checks at the door.
#pragma once

#include <cuda_runtime.h>

#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {

// A row in device memory.
struct MemoryRow {
  const TensorView& x;
  std::int64_t row;

  __device__ float get(std::int64_t col) const { return load(x, row, col); }
  __device__ void set(std::int64_t col, float value) const { store(x, row, col, value); }
};

// A row in shared memory, of values that were rounded as a row of `dtype` would keep them.
struct SharedRow {
  float* values;
  DType dtype;

  __device__ float get(std::int64_t col) const { return values[col]; }
  __device__ void set(std::int64_t col, float value) const { values[col] = rounded(dtype, value); }
};

// values = the row, by all threads of a block.
__device__ inline void stage_row(const TensorView& x, std::int64_t row, float* values) {
  constexpr int kBatch = 4;
  const int stride = static_cast<int>(blockDim.x), num_values = static_cast<int>(x.cols);
  for (int begin = static_cast<int>(threadIdx.x); begin < num_values; begin += kBatch * stride) {
    float batch[kBatch];
    load_batch(x, row, begin, stride, batch);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i * stride < num_values) values[begin + i * stride] = batch[i];
    }
  }
}

// ---- Norms. A column is read and written by one thread, so a row may be normed in place.
// `scratch` takes a float per warp. ----

inline constexpr int kNormThreads = 256;  // in whose order sums go, unless a row is longer
inline constexpr int kNormBatch = 8;      // columns of a thread that are on their way at once

// RMSNorm by kThreads threads. load(first, s) gives s of columns first, first + kThreads, ...;
// emit(col, s, normed) takes each. `weights`: those of the thread's first batch.
template <int kThreads, typename Load, typename Emit>
__device__ inline void rms_norm_row(const RmsNormParams& p, float (&weights)[kNormBatch],
                                    float* scratch, Load load, Emit emit) {
  constexpr int kStride = kNormBatch * kThreads;
  const int cols = static_cast<int>(p.x.cols), first = static_cast<int>(threadIdx.x);
  float s[kNormBatch];
  float squares = 0.0f;
  for (int begin = first; begin < cols; begin += kStride) {
    load(begin, s);
#pragma unroll
    for (int i = 0; i < kNormBatch; ++i) squares = __fmaf_rn(s[i], s[i], squares);
  }
  const float mean = block_sum(squares, scratch) / static_cast<float>(p.x.cols);
  const float factor = 1.0f / sqrtf(mean + p.eps);
  for (int begin = first; begin < cols; begin += kStride) {
    if (cols > kStride) load(begin, s);  // else they are still here
    if (begin != first) load_batch(p.weight, 0, begin, kThreads, weights);
#pragma unroll
    for (int i = 0; i < kNormBatch; ++i) {
      const int col = begin + i * kThreads;
      if (col < cols) emit(col, s[i], s[i] * factor * weights[i]);
    }
  }
}

template <typename Row>
__device__ inline void layer_norm_row(const LayerNormParams& p, const Row& x, float* scratch) {
  const auto count = static_cast<float>(p.x.cols);
  float sum = 0.0f;
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kNormThreads) sum += x.get(col);
  const float mean = block_sum(sum, scratch) / count;
  float squares = 0.0f;
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kNormThreads) {
    const float d = x.get(col) - mean;
    squares = __fmaf_rn(d, d, squares);
  }
  const float factor = 1.0f / sqrtf(block_sum(squares, scratch) / count + p.eps);
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += kNormThreads) {
    const float normal = (x.get(col) - mean) * factor;
    x.set(col, normal * load(p.weight, 0, col) + load(p.bias, 0, col));
  }
}

inline void check_rms_norm(const RmsNormParams& p) {
  CHECK(is_activation(p.x) && is_activation(p.out), "rms_norm of {} to {}", dtype_name(p.x.dtype),
        dtype_name(p.out.dtype));
  CHECK(p.out.rows == p.x.rows && p.out.cols == p.x.cols && p.weight.cols == p.x.cols &&
            p.weight.dtype == DType::kF32,
        "rms_norm of [{}, {}] with {} weights", p.x.rows, p.x.cols, p.weight.cols);
  CHECK(p.residual_use == ResidualUse::kNone ||
            (p.residual.rows == p.x.rows && p.residual.cols == p.x.cols),
        "residual [{}, {}]", p.residual.rows, p.residual.cols);
}
inline void check_layer_norm(const LayerNormParams& p) {
  CHECK(is_activation(p.x) && p.weight.cols == p.x.cols && p.bias.cols == p.x.cols,
        "layer_norm of {} columns with {} weights and {} biases", p.x.cols, p.weight.cols,
        p.bias.cols);
}

// ---- Rope. ----

// Pairs of a row, of all its heads.
STOKER_HD inline int num_pairs(const RopeParams& p) { return p.num_heads * (p.rope_dim / 2); }

// Rotates pair `index` of row `row`, which is `x`. Requires: index < num_pairs().
template <typename Row>
__device__ inline void rope_pair(const RopeParams& p, std::int64_t row, int index, const Row& x) {
  const int half = p.rope_dim / 2;
  const int head = index / half, pair = index % half;
  const int base = head * p.head_stride + p.offset;
  const bool interleaved = p.style == RopeStyle::kInterleaved;
  const int first = base + (interleaved ? 2 * pair : pair);
  const int second = interleaved ? first + 1 : first + half;
  const float a = x.get(first), b = x.get(second);
  float sine, cosine;
  sincosf(static_cast<float>(p.positions[row]) * p.inv_freq[pair], &sine, &cosine);
  x.set(first, a * cosine - b * sine);
  x.set(second, a * sine + b * cosine);
}

inline void check_rope(const RopeParams& p) {
  CHECK(is_activation(p.x) && p.rope_dim % 2 == 0, "rope of {} dimensions", p.rope_dim);
  CHECK((p.num_heads - 1) * p.head_stride + p.offset + p.rope_dim <= p.x.cols,
        "{} heads every {} columns at {}: x has {}", p.num_heads, p.head_stride, p.offset,
        p.x.cols);
}

// ---- Appending to a cache. ----

// The row of the cache that row `row` of the step goes to.
__device__ inline std::int64_t place_of(const AppendParams& p, std::int64_t row) {
  return cache_row(p.pages + p.first[row], p.positions[row]);
}

// To row `to` of a cache of activations, by all threads of a block.
template <typename Row>
__device__ inline void append_row(const AppendParams& p, std::int64_t to, const Row& x) {
  for (std::int64_t col = threadIdx.x; col < p.x.cols; col += blockDim.x) {
    store(p.cache.rows, to, col, x.get(col));
  }
}

// To row `to` of an FP8 cache, by all threads of a block, all of which see the row's values in
// shared memory; these are lost. A warp takes a group at a time.
__device__ inline void append_row_fp8(const AppendParams& p, std::int64_t to_row, float* values) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const int num_threads = static_cast<int>(blockDim.x);
  const quant::KvRowLayout layout = quant::kv_row_layout(p.cache.row);
  std::byte* to = static_cast<std::byte*>(p.cache.rows.data) + to_row * p.cache.rows.row_stride;
  const int num_values = static_cast<int>(p.x.cols);
  if (p.rotated) {
    rotate_shared(values, num_values, thread, num_threads, [] { __syncthreads(); });
  }
  for (int begin = thread / kWarp * kKvGroup; begin < layout.quantised;
       begin += num_threads / kWarp * kKvGroup) {
    const float scale = warp_group_scale(values, begin, layout.quantised, lane);
    for (int i = begin + lane; i < min(begin + kKvGroup, layout.quantised); i += kWarp) {
      to[i] = static_cast<std::byte>(quant::kv_code(values[i], scale));
    }
    if (lane == 0) quant::set_kv_scale(layout, to, begin, scale);
  }
  for (int i = layout.quantised + thread; i < num_values; i += num_threads) {
    quant::set_kv_kept(layout, to, i, values[i]);
  }
}

inline void check_append(const AppendParams& p) {
  const KvRow row = p.cache.is_fp8() ? p.cache.row : KvRow{static_cast<std::int32_t>(p.x.cols), 0};
  CHECK(is_activation(p.x) && row.num_values() == p.x.cols && holds(p.cache, row),
        "append of {} columns to a cache of {}", p.x.cols, p.cache.rows.cols);
}

// ---- Scaling. ----

__device__ inline void scale_value(const TensorView& x, std::int64_t row, std::int64_t col,
                                   float factor) {
  store(x, row, col, load(x, row, col) * factor);
}

}  // namespace stoker::gpu
