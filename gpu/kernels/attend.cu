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

// The row and head of a block, and what it holds of them in shared memory.
struct RowHead {
  int latent;
  std::int64_t row;
  int head, thread, lane, warp;
  float* query;          // [latent + rope], in latent space
  float* sums;           // [latent]
  float* probability;    // [kChunk], of the chunk's positions; before that, their scores
  std::int32_t* cached;  // [kChunk], their rows in the cache

  __device__ RowHead(const AttentionDims& dims, float* shared)
      : row(blockIdx.x), head(static_cast<int>(blockIdx.y)), query(shared) {
    thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
    latent = dims.latent_dim;
    sums = query + latent + dims.rope_dim;
    probability = sums + latent;
    cached = reinterpret_cast<std::int32_t*>(probability + kChunk);
  }
  // The head's first row of kv_b: of its keys, which its values follow.
  __device__ std::int64_t weight_row(const AttentionDims& dims) const {
    return std::int64_t{head} * (dims.nope_dim + dims.value_dim);
  }
};

// The query in latent space, rounded as an operand; the rope part as it is. Clears the sums.
__device__ void absorb_query(const AttendRowsParams& p, RowHead own) {
  const int nope = p.dims.nope_dim, rope = p.dims.rope_dim;
  const std::int64_t query_col = std::int64_t{own.head} * (nope + rope);
  const std::int64_t weight_row = own.weight_row(p.dims);
  for (int l = own.thread; l < own.latent; l += kThreads) {
    float sum = 0.0f;
    for (int d = 0; d < nope; ++d) {
      sum = __fmaf_rn(load(p.queries, own.row, query_col + d), weight_at(p.kv_b, weight_row + d, l),
                      sum);
    }
    own.query[l] = rounded(p.queries.dtype, sum);
    own.sums[l] = 0.0f;
  }
  for (int d = own.thread; d < rope; d += kThreads) {
    own.query[own.latent + d] = load(p.queries, own.row, query_col + nope + d);
  }
}

// Scores of a chunk: visible positions [begin, + count).
__device__ void score_chunk(const AttendRowsParams& p, RowHead own, const Visible& visible,
                            const std::int32_t* pages, int begin, int count) {
  const int width = own.latent + p.dims.rope_dim;
  for (int i = own.warp; i < count; i += kWarps) {
    const std::int64_t at = cache_row(pages, visible.position(begin + i));
    float dot = 0.0f;
    for (int d = own.lane; d < width; d += kWarp) {
      dot = __fmaf_rn(own.query[d], load_cached(p.cache, at, d), dot);
    }
    dot = warp_sum(dot);
    if (own.lane == 0) {
      own.probability[i] = dot * p.dims.softmax_scale;
      own.cached[i] = static_cast<std::int32_t>(at);
    }
  }
}

// A softmax whose scores come a chunk at a time.
struct RunningSoftmax {
  float highest = -INFINITY, total = 0.0f;

  // Weighs the latents of `count` positions: sums and total so far are rescaled whenever a larger
  // score turns up.
  __device__ void add_chunk(const AttendRowsParams& p, RowHead own, int count) {
    float* const probability = own.probability;
    float above = highest;
    for (int i = 0; i < count; ++i) above = fmaxf(above, probability[i]);
    const float shrink = expf(highest - above);  // 0 for the first chunk
    __syncthreads();
    if (own.thread < count) probability[own.thread] = expf(probability[own.thread] - above);
    __syncthreads();
    highest = above;
    total *= shrink;
    for (int i = 0; i < count; ++i) total += probability[i];
    for (int l = own.thread; l < own.latent; l += kThreads) {
      float sum = own.sums[l] * shrink;
      for (int i = 0; i < count; ++i) {
        sum = __fmaf_rn(probability[i], load_cached(p.cache, own.cached[i], l), sum);
      }
      own.sums[l] = sum;
    }
  }
};

// Out of latent space: the sums, divided by `total` and rounded as an operand.
__device__ void project_values(const AttendRowsParams& p, RowHead own, float total) {
  const int value = p.dims.value_dim;
  for (int l = own.thread; l < own.latent; l += kThreads) {
    own.sums[l] = rounded(p.queries.dtype, own.sums[l] / total);
  }
  __syncthreads();
  const std::int64_t weight_row = own.weight_row(p.dims) + p.dims.nope_dim;
  for (int v = own.warp; v < value; v += kWarps) {
    float sum = 0.0f;
    for (int l = own.lane; l < own.latent; l += kWarp) {
      sum = __fmaf_rn(own.sums[l], weight_at(p.kv_b, weight_row + v, l), sum);
    }
    sum = warp_sum(sum);
    if (own.lane == 0) store(p.out, own.row, std::int64_t{own.head} * value + v, sum);
  }
}

// One block per row and head.
__global__ void __launch_bounds__(kThreads) attend(AttendRowsParams p) {
  start_next();
  extern __shared__ float shared[];
  const RowHead own(p.dims, shared);
  wait_for_previous();
  absorb_query(p, own);
  __syncthreads();
  const Visible visible = visible_to(p, own.row);
  const std::int32_t* pages = p.step.latent_pages + p.step.latent_first[own.row];
  RunningSoftmax softmax;
  for (int begin = 0; begin < visible.count; begin += kChunk) {
    const int count = min(kChunk, visible.count - begin);
    score_chunk(p, own, visible, pages, begin, count);
    __syncthreads();
    softmax.add_chunk(p, own, count);
    __syncthreads();
  }
  project_values(p, own, softmax.total);
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
