// Attention for any dimensions and types, and the choice between it and tensor cores.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/kv_rows.cuh"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/pages.cuh"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/visible.cuh"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 64;  // positions per turn of the running softmax

__device__ float weight_at(const QuantView& w, std::int64_t row, std::int64_t col) {
  return quant::element_at(w, row, col) * quant::scale_at(w, row, col);
}

// One block per row and head. Shared memory: query [latent + rope], sums [latent], probabilities
// [kChunk], cache rows of the chunk [kChunk] and one float per warp.
__global__ void __launch_bounds__(kThreads) attend(AttendRowsParams p) {
  start_next();
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
  wait_for_previous();

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
        dot = __fmaf_rn(query[d], load_cached(p.cache, at, d), dot);
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
        sum = __fmaf_rn(probability[i], load_cached(p.cache, rows[i], l), sum);
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

bool is_aligned(const TensorView& x) {
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 &&
         x.row_stride * dtype_bytes(x.dtype) % 16 == 0;
}

bool suits_tensor_cores(const AttentionDims& dims, DType queries, DType cache) {
  return queries == DType::kBf16 && cache != DType::kF32 && dims.latent_dim == kLatentDim &&
         dims.rope_dim == kLatentRope && dims.num_heads % 16 == 0 && dims.nope_dim % 32 == 0 &&
         dims.nope_dim <= 256 && dims.value_dim % 32 == 0;
}

bool takes_tensor_cores(const AttendRowsParams& p) {
  return suits_tensor_cores(p.dims, p.queries.dtype, p.cache.rows.dtype) && is_aligned(p.queries) &&
         is_aligned(p.cache.rows) && reinterpret_cast<std::uintptr_t>(p.kv_b.payload) % 16 == 0;
}

// Into how many splits the rows of a purpose are cut, at most.
struct SplitPlan {
  int split_keys, max_splits;

  SplitPlan(const AttendRowsParams& p, Purpose purpose) {
    split_keys = purpose == Purpose::kDecode ? kDecodeSplitKeys : kPrefillSplitKeys;
    const std::int64_t most_keys =
        p.sparse ? std::min<std::int64_t>(p.max_visible, p.selection.positions.cols)
                 : p.max_visible;
    max_splits = static_cast<int>(
        std::clamp<std::int64_t>((most_keys + split_keys - 1) / split_keys, 1, kMostSplits));
  }
};

// How many such rows the tensor cores take at once, and what lies in the scratch for them.
struct ScratchPlan {
  int rows_at_once;
  std::int64_t query_bytes, sum_bytes, stat_bytes;

  ScratchPlan(int num_heads, std::int64_t num_rows, int max_splits) {
    constexpr int kSplitsAtOnce = 256;  // 67 MB of sums for 128 heads
    rows_at_once = static_cast<int>(std::min<std::int64_t>(num_rows, kSplitsAtOnce / max_splits));
    const std::int64_t heads = std::int64_t{rows_at_once} * num_heads;
    const std::int64_t split_heads = max_splits > 1 ? heads * max_splits : 0;
    query_bytes = heads * kLatentWidth * static_cast<int>(sizeof(bf16));
    sum_bytes = split_heads * kLatentDim * static_cast<int>(sizeof(float));
    stat_bytes = split_heads * static_cast<int>(sizeof(SplitStat));
  }
  std::int64_t bytes() const { return query_bytes + sum_bytes + stat_bytes; }
};

Status attend_on_tensor_cores(const AttendRowsParams& p, const Stream& stream) {
  for (std::size_t i = 0; i < p.ranges.size();) {
    const Purpose purpose = p.ranges[i].purpose;
    const int begin = p.ranges[i].row_begin;
    int end = begin;
    for (; i < p.ranges.size() && p.ranges[i].purpose == purpose; ++i) {
      end = p.ranges[i].row_begin + p.ranges[i].num_rows;
    }
    const SplitPlan splits(p, purpose);
    const ScratchPlan plan(p.dims.num_heads, p.queries.rows, splits.max_splits);
    AttendLatentParams a{p,       begin,   0,      splits.split_keys, splits.max_splits,
                         nullptr, nullptr, nullptr};
    a.queries = reinterpret_cast<bf16*>(p.scratch);
    a.split_sums = reinterpret_cast<float*>(p.scratch + plan.query_bytes);
    a.split_stats = reinterpret_cast<SplitStat*>(p.scratch + plan.query_bytes + plan.sum_bytes);
    for (; a.row_begin < end; a.row_begin += plan.rows_at_once) {
      a.num_rows = std::min(plan.rows_at_once, end - a.row_begin);
      RETURN_IF_ERROR(launch_absorb_queries(a, stream));
      RETURN_IF_ERROR(launch_attend_latent(a, stream));
      RETURN_IF_ERROR(launch_project_values(a, stream));
    }
  }
  return {};
}

}  // namespace

std::int64_t attend_scratch_bytes(const AttendRowsParams& params) {
  if (params.queries.rows == 0 || !takes_tensor_cores(params)) return 0;
  std::int64_t bytes = 0;
  for (const RowRange& range : params.ranges) {
    const int max_splits = SplitPlan(params, range.purpose).max_splits;
    bytes = std::max(bytes,
                     ScratchPlan(params.dims.num_heads, params.queries.rows, max_splits).bytes());
  }
  return bytes;
}

std::int64_t attend_scratch_bound(const AttentionDims& dims, DType queries, DType cache,
                                  std::int64_t num_rows) {
  if (!suits_tensor_cores(dims, queries, cache)) return 0;
  std::int64_t bytes = 0;
  for (int max_splits = 1; max_splits <= kMostSplits; ++max_splits) {
    bytes = std::max(bytes, ScratchPlan(dims.num_heads, num_rows, max_splits).bytes());
  }
  return bytes;
}

Status launch_attend(const AttendRowsParams& params, const Stream& stream) {
  const AttendRowsParams& p = params;
  const AttentionDims& dims = p.dims;
  CHECK(p.queries.cols == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.rope_dim) &&
            holds(p.cache, latent_row(dims)) &&
            p.out.cols == std::int64_t{dims.num_heads} * dims.value_dim,
        "attention: {} query columns, {} cache columns, {} out", p.queries.cols, p.cache.rows.cols,
        p.out.cols);
  CHECK(p.kv_b.cols == dims.latent_dim &&
            p.kv_b.rows == std::int64_t{dims.num_heads} * (dims.nope_dim + dims.value_dim),
        "kv_b [{}, {}]", p.kv_b.rows, p.kv_b.cols);
  if (p.queries.rows == 0) return {};
  if (takes_tensor_cores(p)) return attend_on_tensor_cores(p, stream);
  const int shared_bytes =
      (2 * dims.latent_dim + dims.rope_dim + 2 * kChunk) * static_cast<int>(sizeof(float));
  RETURN_IF_ERROR(
      cuda_status(
          cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "attention: shared memory for a head"),
      "{} bytes", shared_bytes);
  const dim3 grid(static_cast<unsigned>(p.queries.rows), static_cast<unsigned>(dims.num_heads));
  return launch_kernel("attend", attend, {grid, dim3(kThreads), shared_bytes}, stream, p);
}

}  // namespace stoker::gpu
