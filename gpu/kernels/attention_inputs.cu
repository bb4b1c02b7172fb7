// What stands between attention's linears and attention, in one launch: nine small operations whose
// launches and trips to memory would take longer than all they compute.
#include <algorithm>

#include "gpu/error.h"
#include "gpu/kernels/common/overlap.cuh"
#include "gpu/kernels/common/row_steps.cuh"
#include "gpu/launch.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = kNormThreads;
static_assert(kMostFusedLatent == kNormBatch * kThreads);

// What the blocks of a row do. Those that take longest come first.
enum Job : std::uint8_t { kIndexKey, kLatent, kQueries, kIndexQueries, kIndexWeights, kNumJobs };

// Every step as its own operation takes it.
struct Steps {
  int num_blocks[kNumJobs] = {};  // of a row
  RopeParams queries;
  RmsNormParams latent_norm;
  RopeParams shared_key;
  AppendParams latent_append;
  // Where there is an indexer:
  LayerNormParams index_norm;
  RopeParams index_key;
  AppendParams index_append;
  RopeParams index_queries;
  TensorView index_weights;
  float weight_factor = 1.0f;
};

__device__ void append_shared(const AppendParams& p, std::int64_t to, const SharedRow& x) {
  if (p.cache.rows.dtype == DType::kU8) {
    append_row_fp8(p, to, x.values);
  } else {
    append_row(p, to, x);
  }
}

__device__ void rotate_shared_row(const RopeParams& p, std::int64_t row, const SharedRow& x) {
  for (int i = static_cast<int>(threadIdx.x); i < num_pairs(p); i += kThreads) {
    rope_pair(p, row, i, x);
  }
}

// The latent is normed and the rope key beside it rotated: other columns, at the same time.
__device__ void keep_latent(const Steps& s, std::int64_t row, float* values, float* scratch) {
  const SharedRow x{values, s.latent_append.x.dtype};
  stage_row(s.latent_append.x, row, values);
  const std::int64_t to = place_of(s.latent_append, row);
  __syncthreads();
  rotate_shared_row(s.shared_key, row, x);
  float weights[kNormBatch];
  load_batch(s.latent_norm.weight, 0, static_cast<int>(threadIdx.x), kThreads, weights);
  const int num_normed = static_cast<int>(s.latent_norm.x.cols);
  rms_norm_row<kThreads>(
      s.latent_norm, weights, scratch,
      [&](int first, float(&values_of)[kNormBatch]) {
#pragma unroll
        for (int i = 0; i < kNormBatch; ++i) {
          const int col = first + i * kThreads;
          values_of[i] = col < num_normed ? x.get(col) : 0.0f;
        }
      },
      [&](int col, float, float normed) { x.set(col, normed); });
  __syncthreads();
  append_shared(s.latent_append, to, x);
}

__device__ void keep_index_key(const Steps& s, std::int64_t row, float* values, float* scratch) {
  const SharedRow x{values, s.index_append.x.dtype};
  stage_row(s.index_append.x, row, values);
  const std::int64_t to = place_of(s.index_append, row);
  __syncthreads();
  layer_norm_row(s.index_norm, x, scratch);
  __syncthreads();
  rotate_shared_row(s.index_key, row, x);
  __syncthreads();
  append_shared(s.index_append, to, x);
}

// grid.x is the row, grid.y a block of one of its jobs. Shared memory: the values of a cached row.
__global__ void __launch_bounds__(kThreads) attention_inputs(const __grid_constant__ Steps s) {
  start_next();
  extern __shared__ float values[];
  __shared__ float scratch[kThreads / kWarp];
  const std::int64_t row = blockIdx.x;
  int job = 0, block = static_cast<int>(blockIdx.y);
  while (block >= s.num_blocks[job]) block -= s.num_blocks[job++];
  const int index = block * kThreads + static_cast<int>(threadIdx.x);
  if (job == kLatent) {
    prefetch_block(s.latent_norm.weight.data, static_cast<int>(s.latent_norm.x.cols * 4));
  } else if (job == kIndexKey) {
    prefetch_block(s.index_norm.weight.data, static_cast<int>(s.index_norm.x.cols * 4));
    prefetch_block(s.index_norm.bias.data, static_cast<int>(s.index_norm.x.cols * 4));
  }
  wait_for_previous();
  if (job == kLatent) {
    keep_latent(s, row, values, scratch);
  } else if (job == kIndexKey) {
    keep_index_key(s, row, values, scratch);
  } else if (job == kIndexWeights) {
    if (index < s.index_weights.cols) scale_value(s.index_weights, row, index, s.weight_factor);
  } else {
    const RopeParams rope = job == kQueries ? s.queries : s.index_queries;
    if (index < num_pairs(rope)) rope_pair(rope, row, index, MemoryRow{rope.x, row});
  }
}

// As Backend::prepare_attention() gives them to single operations.
Steps steps_of(const AttentionInputRowsParams& params) {
  const AttentionInputParams& p = params.inputs;
  const StepTables& step = params.step;
  const int rope_dim = p.dims.rope_dim;
  const TensorView latent = p.kv_a.col_slice(0, p.dims.latent_dim);
  const auto rope = [&](const TensorView& x, int num_heads, int head_stride, int offset,
                        RopeStyle style) {
    return RopeParams{x,           step.positions, params.inv_freq, num_heads,
                      head_stride, offset,         rope_dim,        style};
  };
  Steps s{};
  s.queries = rope(p.queries, p.dims.num_heads, p.dims.nope_dim + rope_dim, p.dims.nope_dim,
                   RopeStyle::kInterleaved);
  s.latent_norm = {latent, {}, ResidualUse::kNone, p.norm_weight, latent, p.norm_eps};
  s.shared_key = rope(p.kv_a, 1, 0, p.dims.latent_dim, RopeStyle::kInterleaved);
  s.latent_append = {p.kv_a,         p.latents,         /*rotated=*/false,
                     step.positions, step.latent_first, step.latent_pages};
  s.num_blocks[kLatent] = 1;
  s.num_blocks[kQueries] = static_cast<int>(blocks_for(num_pairs(s.queries), kThreads));
  if (p.indexer == nullptr) return s;
  const IndexInputParams& i = *p.indexer;
  s.index_norm = {i.key, i.norm_weight, i.norm_bias, i.norm_eps};
  s.index_key = rope(i.key, 1, 0, 0, RopeStyle::kHalfSplit);
  s.index_append = {i.key,          i.keys,           /*rotated=*/true,
                    step.positions, step.index_first, step.index_pages};
  s.index_queries = rope(i.queries, i.dims.num_heads, i.dims.head_dim, 0, RopeStyle::kHalfSplit);
  s.index_weights = i.weights;
  s.weight_factor = i.weight_factor;
  s.num_blocks[kIndexKey] = 1;
  s.num_blocks[kIndexQueries] = static_cast<int>(blocks_for(num_pairs(s.index_queries), kThreads));
  s.num_blocks[kIndexWeights] = static_cast<int>(blocks_for(i.weights.cols, kThreads));
  return s;
}

}  // namespace

Status launch_attention_inputs(const AttentionInputRowsParams& params, const Stream& stream) {
  const AttentionInputParams& p = params.inputs;
  const std::int64_t num_rows = p.kv_a.rows;
  const Steps s = steps_of(params);
  CHECK(p.dims.latent_dim <= kMostFusedLatent &&
            p.kv_a.cols == p.dims.latent_dim + p.dims.rope_dim && p.queries.rows == num_rows,
        "inputs of attention: [{}, {}] and {} rows of queries", num_rows, p.kv_a.cols,
        p.queries.rows);
  check_rope(s.queries);
  check_rms_norm(s.latent_norm);
  check_rope(s.shared_key);
  check_append(s.latent_append);
  std::int64_t num_values = p.kv_a.cols;
  if (p.indexer != nullptr) {
    const IndexInputParams& i = *p.indexer;
    CHECK(i.key.rows == num_rows && i.queries.rows == num_rows && i.weights.rows == num_rows &&
              i.key.cols == i.dims.head_dim && is_activation(i.weights),
          "inputs of the indexer: keys [{}, {}], {} rows of queries, {} of weights", i.key.rows,
          i.key.cols, i.queries.rows, i.weights.rows);
    check_layer_norm(s.index_norm);
    check_rope(s.index_key);
    check_append(s.index_append);
    check_rope(s.index_queries);
    num_values = std::max(num_values, i.key.cols);
  }
  if (num_rows == 0) return {};
  int num_blocks = 0;
  for (const int count : s.num_blocks) num_blocks += count;
  const int shared_bytes = static_cast<int>(num_values * static_cast<std::int64_t>(sizeof(float)));
  RETURN_IF_ERROR(allow_shared(attention_inputs, shared_bytes));
  const dim3 grid(static_cast<unsigned>(num_rows), static_cast<unsigned>(num_blocks));
  return launch_kernel("attention_inputs", attention_inputs, {grid, dim3(kThreads), shared_bytes},
                       stream, s);
}

}  // namespace stoker::gpu
