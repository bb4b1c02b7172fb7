#include "gpu/error.h"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/launch.h"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 64;  // positions per turn of the running softmax

__device__ float weight_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  return quant::element_at(w, row, col) * quant::scale_at(w, row, col);
}

// Positions that a row attends to, in order.
struct Visible {
  const std::int32_t* chosen;  // null: all
  int count;
  __device__ int position(int i) const { return chosen == nullptr ? i : chosen[i]; }
};

__device__ Visible visible_to(const AttendRowsParams& p, std::int64_t row) {
  const Visible all{nullptr, p.step.positions[row] + 1};
  if (!p.sparse) return all;
  const int count = static_cast<const std::int32_t*>(
      p.selection.counts.data)[row * p.selection.counts.row_stride];
  if (count < 0) return all;
  return {static_cast<const std::int32_t*>(p.selection.positions.data) +
              row * p.selection.positions.row_stride,
          count};
}

// One block per row and head. Shared memory: query [latent + rope], sums [latent], probabilities
// [kChunk], cache rows of the chunk [kChunk] and one float per warp.
__global__ void __launch_bounds__(kThreads) attend(AttendRowsParams p) {
  extern __shared__ float shared[];
  const int nope = p.dims.nope_dim, rope = p.dims.rope_dim, value = p.dims.value_dim;
  const int latent = p.dims.latent_dim, width = latent + rope;
  float* query = shared;
  float* sums = query + width;
  float* probability = sums + latent;
  auto* rows = reinterpret_cast<std::int32_t*>(probability + kChunk);
  const std::int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t query_col = std::int64_t{head} * (nope + rope);
  const std::int64_t weight_row = std::int64_t{head} * (nope + value);
  const DType activation = p.queries.dtype;

  // 1. The query in latent space, rounded as an operand; the rope part as it is.
  for (int l = thread; l < latent; l += kThreads) {
    float sum = 0.0f;
    for (int d = 0; d < nope; ++d) {
      sum =
          __fmaf_rn(load(p.queries, row, query_col + d), weight_at(p.kv_b, weight_row + d, l), sum);
    }
    query[l] = rounded(activation, sum);
    sums[l] = 0.0f;
  }
  for (int d = thread; d < rope; d += kThreads) {
    query[latent + d] = load(p.queries, row, query_col + nope + d);
  }
  __syncthreads();

  // 2. Softmax over the positions, a chunk at a time: the sums so far are rescaled whenever a
  // larger score turns up.
  const Visible visible = visible_to(p, row);
  const std::int32_t* pages = p.step.latent_pages + p.step.latent_first[row];
  float highest = -INFINITY, total = 0.0f;
  for (int begin = 0; begin < visible.count; begin += kChunk) {
    const int count = min(kChunk, visible.count - begin);
    for (int i = warp; i < count; i += kWarps) {
      const std::int64_t at = cache_row(pages, visible.position(begin + i));
      float dot = 0.0f;
      for (int d = lane; d < width; d += kWarp) {
        dot = __fmaf_rn(query[d], load(p.cache, at, d), dot);
      }
      dot = warp_sum(dot);
      if (lane == 0) {
        probability[i] = dot * p.dims.softmax_scale;
        rows[i] = static_cast<std::int32_t>(at);
      }
    }
    __syncthreads();
    float above = highest;
    for (int i = 0; i < count; ++i) above = fmaxf(above, probability[i]);
    const float shrink = expf(highest - above);  // 0 for the first chunk
    __syncthreads();
    if (thread < count) probability[thread] = expf(probability[thread] - above);
    __syncthreads();
    highest = above;
    total *= shrink;
    for (int i = 0; i < count; ++i) total += probability[i];
    for (int l = thread; l < latent; l += kThreads) {
      float sum = sums[l] * shrink;
      for (int i = 0; i < count; ++i) {
        sum = __fmaf_rn(probability[i], load(p.cache, rows[i], l), sum);
      }
      sums[l] = sum;
    }
    __syncthreads();
  }

  // 3. Out of latent space.
  for (int l = thread; l < latent; l += kThreads) sums[l] = rounded(activation, sums[l] / total);
  __syncthreads();
  for (int v = warp; v < value; v += kWarps) {
    float sum = 0.0f;
    for (int l = lane; l < latent; l += kWarp) {
      sum = __fmaf_rn(sums[l], weight_at(p.kv_b, weight_row + nope + v, l), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) store(p.out, row, std::int64_t{head} * value + v, sum);
  }
}

}  // namespace

Status launch_attend(const AttendRowsParams& params, const Stream& stream) {
  const AttendRowsParams& p = params;
  const AttentionDims& dims = p.dims;
  CHECK(p.queries.cols == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.rope_dim) &&
            p.cache.cols == dims.latent_dim + dims.rope_dim &&
            p.out.cols == std::int64_t{dims.num_heads} * dims.value_dim,
        "attention: {} query columns, {} cache columns, {} out", p.queries.cols, p.cache.cols,
        p.out.cols);
  CHECK(p.kv_b.cols == dims.latent_dim &&
            p.kv_b.rows == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.value_dim),
        "kv_b [{}, {}]", p.kv_b.rows, p.kv_b.cols);
  if (p.queries.rows == 0) return {};
  const int shared_bytes =
      (2 * dims.latent_dim + dims.rope_dim + 2 * kChunk) * static_cast<int>(sizeof(float));
  RETURN_IF_ERROR(
      cuda_status(
          cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "attention: shared memory for a head"),
      "{} bytes", shared_bytes);
  const dim3 grid(static_cast<unsigned>(p.queries.rows), static_cast<unsigned>(dims.num_heads));
  attend<<<grid, kThreads, shared_bytes, native(stream)>>>(p);
  return launch_status("attend");
}

}  // namespace stoker::gpu
