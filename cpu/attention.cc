#include "cpu/attention.h"

#include <algorithm>
#include <cstring>

#include "core/base/check.h"
#include "cpu/cpu_weight.h"
#include "cpu/top_k.h"

namespace stoker::cpu {
namespace {

constexpr int kKeyBlock = 64;      // keys widened at a time
constexpr int kHeadGroup = 16;     // heads of a task, at most
constexpr int kScoreChunk = 1024;  // keys of an indexer task
constexpr int kSelectBatch = 16;   // rows whose scores are held at a time

std::int64_t align_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

std::int64_t cached_row(std::span<const std::int32_t> pages, std::int64_t position) {
  return std::int64_t{pages[position / kPageTokens]} * kPageTokens + position % kPageTokens;
}

const std::byte* address(const TensorView& view, std::int64_t row, std::int64_t col = 0) {
  return static_cast<const std::byte*>(view.data) +
         (row * view.row_stride + col) * dtype_bytes(view.dtype);
}

}  // namespace

Attention::Attention(Team& team, const Kernels& kernels, DType activations)
    : team_(team), kernels_(kernels), activations_(activations), workers_(team.num_threads()) {
  for (Worker& worker : workers_) worker.histogram.resize(kTopKBuckets);
  rows_.reserve(1024);
}

void Attention::load_keys(const KvLayer& cached, const Row& row, std::int64_t begin, int count,
                          std::int64_t stride, float* keys) {
  const TensorView& rows = cached.rows;
  const quant::KvRowLayout layout = quant::kv_row_layout(cached.row);
  const std::int64_t num_values = cached.is_fp8() ? cached.row.num_values() : rows.cols;
  for (int j = 0; j < count; ++j) {
    const std::int64_t position = row.positions != nullptr ? row.positions[begin + j] : begin + j;
    const std::byte* const at = address(rows, cached_row(row.pages, position));
    float* const key = keys + j * stride;
    if (cached.is_fp8()) {
      kernels_.decode_kv_row(layout, at, key);
    } else {
      kernels_.convert(at, rows.dtype, key, DType::kF32, num_values);
    }
    std::fill(key + num_values, key + stride, 0.0f);
  }
}

void Attention::attend(const StepView& step, const AttendParams& params) {
  const AttentionDims& dims = params.dims;
  CHECK(!params.latents.is_fp8() || params.latents.row == latent_row(dims),
        "FP8 rows of {} and {} values for latents of {} and {}", params.latents.row.quantised,
        params.latents.row.kept, dims.latent_dim, dims.rope_dim);
  rows_.clear();
  std::int64_t most_keys = 0;
  for (const RowRange& range : step.ranges) {
    for (int t = range.row_begin; t < range.row_begin + range.num_rows; ++t) {
      Row row{t, step.positions[t] + 1, step.sequences[range.sequence].latent, nullptr};
      const Selection* const selection = params.selection;
      if (selection != nullptr && selection->counts.row<std::int32_t>(t)[0] >= 0) {
        row.num_keys = selection->counts.row<std::int32_t>(t)[0];
        row.positions = selection->positions.row<std::int32_t>(t);
      }
      most_keys = std::max<std::int64_t>(most_keys, row.num_keys);
      rows_.push_back(row);
    }
  }
  // Enough tasks for every worker, each as large as that allows.
  int group = kHeadGroup;
  while (group > 4 &&
         std::int64_t{dims.num_heads} * step.num_rows() < 4 * group * team_.num_threads())
    group /= 2;
  const std::int64_t key_dim = align_up(dims.latent_dim + dims.rope_dim, kLaneAlign);
  for (Worker& worker : workers_) {
    worker.scores.reserve_array<float>(kHeadGroup * align_up(most_keys, kLaneAlign));
    worker.query.reserve_array<float>(kHeadGroup * key_dim);
    worker.keys.reserve_array<float>(kKeyBlock * key_dim);
    worker.mixed.reserve_array<float>(kHeadGroup * key_dim);
    worker.narrow.reserve_array<float>(key_dim);
    worker.product.reserve_array<float>(
        std::max<std::int64_t>(key_dim, dims.nope_dim + kInputAlign));
  }
  const int groups = (dims.num_heads + group - 1) / group;
  team_.run(step.num_rows() * groups, [&](int task, int worker) {
    const int head = task % groups * group;
    attend_heads(params, rows_[task / groups], head, std::min(group, dims.num_heads - head),
                 workers_[worker]);
  });
}

// query [latent + rope]: q_nope . Wk, rounded once to the activation type, and q_rope.
void Attention::absorb_query(const AttendParams& params, const Row& row, int head, float* query,
                             Worker& worker) {
  const AttentionDims& dims = params.dims;
  const auto& kv_b = static_cast<const KvBWeight&>(*params.kv_b);
  const std::int64_t at = std::int64_t{head} * (dims.nope_dim + dims.rope_dim);
  const DType dtype = params.queries.dtype;
  auto* const x = static_cast<float*>(worker.product.reserve(0));
  void* const rounded = worker.narrow.reserve(0);
  kernels_.prepare_row(address(params.queries, row.row, at), dtype, dims.nope_dim, x);
  kernels_.tile_product({.w = kv_b.key(head),
                         .x = x,
                         .y = rounded,
                         .y_dtype = activations_,
                         .num_rows = 1,
                         .tile_end = (dims.latent_dim + 15) / 16});
  kernels_.convert(rounded, activations_, query, DType::kF32, dims.latent_dim);
  kernels_.convert(address(params.queries, row.row, at + dims.nope_dim), dtype,
                   query + dims.latent_dim, DType::kF32, dims.rope_dim);
}

void Attention::attend_heads(const AttendParams& params, const Row& row, int head_begin,
                             int num_heads, Worker& worker) {
  const AttentionDims& dims = params.dims;
  const auto& kv_b = static_cast<const KvBWeight&>(*params.kv_b);
  const std::int64_t key_dim = align_up(dims.latent_dim + dims.rope_dim, kLaneAlign);
  const std::int64_t mixed_dim = align_up(dims.latent_dim, kLaneAlign);
  const std::int64_t score_stride = align_up(row.num_keys, kLaneAlign);
  auto* const query = static_cast<float*>(worker.query.reserve(0));
  auto* const keys = static_cast<float*>(worker.keys.reserve(0));
  auto* const scores = static_cast<float*>(worker.scores.reserve(0));
  auto* const mixed = static_cast<float*>(worker.mixed.reserve(0));

  // 1. Queries.
  std::fill_n(query, num_heads * key_dim, 0.0f);
  for (int i = 0; i < num_heads; ++i) {
    absorb_query(params, row, head_begin + i, query + i * key_dim, worker);
  }
  // 2. Scores and their softmax; what it divides by is applied in 4.
  for (int begin = 0; begin < row.num_keys; begin += kKeyBlock) {
    const int count = std::min(kKeyBlock, row.num_keys - begin);
    load_keys(params.latents, row, begin, count, key_dim, keys);
    kernels_.dot_block(query, key_dim, num_heads, keys, key_dim, count, key_dim, scores + begin,
                       score_stride);
  }
  float sums[kHeadGroup];
  for (int i = 0; i < num_heads; ++i) {
    sums[i] = kernels_.softmax(scores + i * score_stride, dims.softmax_scale, row.num_keys);
  }
  // 3. Weighted latents. Columns past latent_dim come out as sums over rope parts, and are dropped.
  std::fill_n(mixed, num_heads * mixed_dim, 0.0f);
  for (int begin = 0; begin < row.num_keys; begin += kKeyBlock) {
    const int count = std::min(kKeyBlock, row.num_keys - begin);
    load_keys(params.latents, row, begin, count, key_dim, keys);
    kernels_.add_weighted(scores + begin, score_stride, num_heads, keys, key_dim, count, mixed_dim,
                          mixed, mixed_dim);
  }
  // 4. Values.
  void* const rounded = worker.narrow.reserve(0);
  auto* const x = static_cast<float*>(worker.product.reserve(0));
  for (int i = 0; i < num_heads; ++i) {
    kernels_.scale(mixed + i * mixed_dim, 1.0f / sums[i], dims.latent_dim);
    kernels_.convert(mixed + i * mixed_dim, DType::kF32, rounded, activations_, dims.latent_dim);
    kernels_.prepare_row(rounded, activations_, dims.latent_dim, x);
    const std::int64_t col = std::int64_t{head_begin + i} * dims.value_dim;
    kernels_.tile_product({.w = kv_b.value(head_begin + i),
                           .x = x,
                           .y = const_cast<std::byte*>(address(params.out, row.row, col)),
                           .y_dtype = params.out.dtype,
                           .num_rows = 1,
                           .tile_end = (dims.value_dim + 15) / 16});
  }
}

void Attention::widen_queries(const SelectParams& params, const Row& row, std::int64_t stride,
                              float* query) {
  const IndexerDims& dims = params.dims;
  std::fill_n(query, dims.num_heads * stride, 0.0f);
  for (int head = 0; head < dims.num_heads; ++head) {
    float* const to = query + head * stride;
    kernels_.convert(address(params.queries, row.row, std::int64_t{head} * dims.head_dim),
                     params.queries.dtype, to, DType::kF32, dims.head_dim);
    if (params.keys.is_fp8()) quant::round_index_query(to, dims.head_dim);
  }
}

void Attention::score_chunk(const SelectParams& params, const Row& row, const float* query,
                            std::int64_t begin, int count, float* scores, Worker& worker) {
  const IndexerDims& dims = params.dims;
  const std::int64_t stride = align_up(dims.head_dim, kLaneAlign);
  auto* const keys = static_cast<float*>(worker.keys.reserve(0));
  auto* const products = static_cast<float*>(worker.mixed.reserve(0));
  if (query == nullptr) {
    auto* const own = static_cast<float*>(worker.query.reserve(0));
    widen_queries(params, row, stride, own);
    query = own;
  }
  const float* const weights = params.weights.row<float>(row.row);
  for (int at = 0; at < count; at += kKeyBlock) {
    const int num_keys = std::min(kKeyBlock, count - at);
    load_keys(params.keys, row, begin + at, num_keys, stride, keys);
    kernels_.dot_block(query, stride, dims.num_heads, keys, stride, num_keys, stride, products,
                       kKeyBlock);
    kernels_.relu_weigh(products, kKeyBlock, dims.num_heads, weights, num_keys,
                        scores + begin + at);
  }
}

void Attention::select(const StepView& step, const SelectParams& params) {
  const IndexerDims& dims = params.dims;
  CHECK(!params.keys.is_fp8() || params.keys.row == index_key_row(dims),
        "FP8 rows of {} values for indexer keys of {}", params.keys.row.num_values(),
        dims.head_dim);
  rows_.clear();
  std::int64_t most_keys = 0;
  for (const RowRange& range : step.ranges) {
    for (int t = range.row_begin; t < range.row_begin + range.num_rows; ++t) {
      const std::int32_t visible = step.positions[t] + 1;
      const bool scored = visible > dims.top_k;
      params.out.counts.row<std::int32_t>(t)[0] = scored ? dims.top_k : -1;
      if (!scored) continue;
      rows_.push_back({t, visible, step.sequences[range.sequence].index, nullptr});
      most_keys = std::max<std::int64_t>(most_keys, visible);
    }
  }
  if (rows_.empty()) return;
  const std::int64_t stride = align_up(dims.head_dim, kLaneAlign);
  for (Worker& worker : workers_) {
    worker.query.reserve_array<float>(dims.num_heads * stride);
    worker.keys.reserve_array<float>(kKeyBlock * stride);
    worker.mixed.reserve_array<float>(dims.num_heads * kKeyBlock);
  }
  const std::size_t most_rows = std::min<std::size_t>(rows_.size(), kSelectBatch);
  float* const scores = index_scores_.reserve_array<float>(most_rows * most_keys);
  // Rotating and rounding a row's queries for each of its chunks would cost too much.
  const std::int64_t row_queries = dims.num_heads * stride;
  float* const queries =
      params.keys.is_fp8() ? index_queries_.reserve_array<float>(most_rows * row_queries) : nullptr;
  const auto chunks = static_cast<int>((most_keys + kScoreChunk - 1) / kScoreChunk);
  for (std::size_t first = 0; first < rows_.size(); first += kSelectBatch) {
    const auto num_rows =
        static_cast<int>(std::min<std::size_t>(kSelectBatch, rows_.size() - first));
    if (queries != nullptr) {
      team_.run(num_rows, [&](int task, int) {
        widen_queries(params, rows_[first + task], stride, queries + task * row_queries);
      });
    }
    team_.run(num_rows * chunks, [&](int task, int worker) {
      const Row& row = rows_[first + task / chunks];
      const int begin = task % chunks * kScoreChunk;
      if (begin >= row.num_keys) return;
      const float* const query =
          queries == nullptr ? nullptr : queries + task / chunks * row_queries;
      score_chunk(params, row, query, begin, std::min(kScoreChunk, row.num_keys - begin),
                  scores + task / chunks * most_keys, workers_[worker]);
    });
    team_.run(num_rows, [&](int task, int worker) {
      const Row& row = rows_[first + task];
      select_top_k(
          {scores + task * most_keys, static_cast<std::size_t>(row.num_keys)},
          {params.out.positions.row<std::int32_t>(row.row), static_cast<std::size_t>(dims.top_k)},
          workers_[worker].histogram);
    });
  }
}

}  // namespace stoker::cpu
