#include "cpu/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu/router.h"
#include "quant/defined_arithmetic.h"
#include "quant/fp8.h"

namespace stoker {
namespace {

// A weight expanded to F32 [rows, cols].
class DenseWeight final : public BackendWeight {
 public:
  explicit DenseWeight(const QuantView& host)
      : rows_(host.rows),
        cols_(host.cols),
        values_(static_cast<std::size_t>(host.rows * host.cols)) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < cols_; ++c) {
        values_[r * cols_ + c] = quant::element_at(host, r, c) * quant::scale_at(host, r, c);
      }
    }
  }
  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::int64_t bytes() const override { return rows_ * cols_ * 4; }
  const float* row(std::int64_t index) const { return values_.data() + index * cols_; }

 private:
  std::int64_t rows_, cols_;
  std::vector<float> values_;
};

const DenseWeight& dense(const BackendWeight& weight) {
  return static_cast<const DenseWeight&>(weight);
}

float dot(const float* a, const float* b, std::int64_t n) {
  float partial[4] = {0, 0, 0, 0};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; ++j) partial[j] += a[i + j] * b[i + j];
  }
  for (; i < n; ++i) partial[0] += a[i] * b[i];
  return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

void matmul(const DenseWeight& w, const TensorView& x, const TensorView& y) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t r = 0; r < w.rows(); ++r)
      y.row<float>(t)[r] = dot(w.row(r), x.row<float>(t), w.cols());
  }
}

void rms_norm_row(const float* x, const float* weight, float eps, std::int64_t n, float* out) {
  const float mean_square = dot(x, x, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean_square + eps);
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

std::int64_t page_row(std::span<const std::int32_t> pages, std::int64_t position) {
  return std::int64_t{pages[position / kPageTokens]} * kPageTokens + position % kPageTokens;
}

// Calls fn(row, range's sequence) for every row of the step.
template <typename Fn>
void for_each_row(const StepView& step, const Fn& fn) {
  for (const RowRange& range : step.ranges) {
    for (int row = range.row_begin; row < range.row_begin + range.num_rows; ++row) {
      fn(row, step.sequences[range.sequence]);
    }
  }
}

// Softmax in place.
void softmax(std::vector<float>& scores) {
  const float top = *std::max_element(scores.begin(), scores.end());
  float total = 0.0f;
  for (float& score : scores) total += score = std::exp(score - top);
  for (float& score : scores) score /= total;
}

}  // namespace

Result<Tensor> ReferenceBackend::allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
  return allocate_host(dtype, rows, cols);
}

Result<WeightPtr> ReferenceBackend::adopt(const QuantView& host) {
  return WeightPtr(std::make_unique<DenseWeight>(host));
}

Result<WeightPtr> ReferenceBackend::adopt_kv_b(const QuantView& host,
                                               const AttentionDims& /*dims*/) {
  return adopt(host);
}

Result<Tensor> ReferenceBackend::adopt_vector(const TensorView& host) {
  ASSIGN_OR_RETURN(Tensor tensor, allocate(DType::kF32, 1, host.cols));
  float* const out = tensor.view().row<float>(0);
  for (std::int64_t i = 0; i < host.cols; ++i) {
    switch (host.dtype) {
      case DType::kF32:
        out[i] = host.row<float>(0)[i];
        break;
      case DType::kBf16:
        out[i] = to_f32(host.row<bf16>(0)[i]);
        break;
      case DType::kF16:
        out[i] = to_f32(host.row<f16>(0)[i]);
        break;
      default:
        return make_error(ErrorCode::kUnsupported, "a vector of {}", dtype_name(host.dtype));
    }
  }
  return tensor;
}

Status ReferenceBackend::set_rope(std::span<const float> inv_freq) {
  inv_freq_.assign(inv_freq.begin(), inv_freq.end());
  return {};
}

void ReferenceBackend::copy_in(const TensorView& dst, const void* src) {
  const std::size_t row_bytes = static_cast<std::size_t>(dst.cols) * dtype_bytes(dst.dtype);
  for (std::int64_t r = 0; r < dst.rows; ++r) {
    std::memcpy(dst.row_slice(r, 1).data, static_cast<const std::byte*>(src) + r * row_bytes,
                row_bytes);
  }
}

void ReferenceBackend::copy_out(void* dst, const TensorView& src) {
  const std::size_t row_bytes = static_cast<std::size_t>(src.cols) * dtype_bytes(src.dtype);
  for (std::int64_t r = 0; r < src.rows; ++r) {
    std::memcpy(static_cast<std::byte*>(dst) + r * row_bytes, src.row_slice(r, 1).data, row_bytes);
  }
}

void ReferenceBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(dst.rows == src.rows && dst.cols == src.cols && dst.dtype == src.dtype,
        "[{}, {}] from [{}, {}]", dst.rows, dst.cols, src.rows, src.cols);
  for (std::int64_t r = 0; r < dst.rows; ++r)
    copy_in(dst.row_slice(r, 1), src.row_slice(r, 1).data);
}

void ReferenceBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  for (int t = 0; t < step.num_rows(); ++t) {
    std::copy_n(dense(table).row(step.tokens[t]), out.cols, out.row<float>(t));
  }
}

void ReferenceBackend::linear(const StepView& /*step*/, const BackendWeight& weight, TensorView x,
                              TensorView y) {
  matmul(dense(weight), x, y);
}

void ReferenceBackend::logits(const StepView& /*step*/, const BackendWeight& head, TensorView x,
                              TensorView y) {
  matmul(dense(head), x, y);
}

void ReferenceBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  for (std::size_t i = 0; i < step.logit_rows.size(); ++i) {
    std::copy_n(x.row<float>(step.logit_rows[i]), x.cols,
                out.row<float>(static_cast<std::int64_t>(i)));
  }
}

void ReferenceBackend::rms_norm(const StepView& /*step*/, TensorView x, TensorView weight,
                                float eps, TensorView out) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    rms_norm_row(x.row<float>(t), weight.row<float>(0), eps, x.cols, out.row<float>(t));
  }
}

void ReferenceBackend::add_rms_norm(const StepView& /*step*/, TensorView h, TensorView residual,
                                    bool first, TensorView weight, float eps, TensorView out) {
  for (std::int64_t t = 0; t < h.rows; ++t) {
    float* const sum = residual.row<float>(t);
    for (std::int64_t i = 0; i < h.cols; ++i)
      sum[i] = first ? h.row<float>(t)[i] : h.row<float>(t)[i] + sum[i];
    rms_norm_row(sum, weight.row<float>(0), eps, h.cols, out.row<float>(t));
  }
}

void ReferenceBackend::layer_norm(const StepView& /*step*/, TensorView x, TensorView weight,
                                  TensorView bias, float eps) {
  const auto n = static_cast<float>(x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    float* const row = x.row<float>(t);
    const float mean = std::accumulate(row, row + x.cols, 0.0f) / n;
    float variance = 0.0f;
    for (std::int64_t i = 0; i < x.cols; ++i) variance += (row[i] - mean) * (row[i] - mean);
    const float factor = 1.0f / std::sqrt(variance / n + eps);
    for (std::int64_t i = 0; i < x.cols; ++i) {
      row[i] = (row[i] - mean) * factor * weight.row<float>(0)[i] + bias.row<float>(0)[i];
    }
  }
}

void ReferenceBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                            int offset, int rope_dim, RopeStyle style) {
  const int half = rope_dim / 2;
  CHECK(static_cast<int>(inv_freq_.size()) == half, "{} frequencies for {} dimensions",
        inv_freq_.size(), rope_dim);
  for (int t = 0; t < step.num_rows(); ++t) {
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(step.positions[t]) * inv_freq_[i];
      const float cosine = std::cos(angle), sine = std::sin(angle);
      const int first = style == RopeStyle::kInterleaved ? 2 * i : i;
      const int second = style == RopeStyle::kInterleaved ? 2 * i + 1 : i + half;
      for (int head = 0; head < num_heads; ++head) {
        float* const at = x.row<float>(t) + head * head_stride + offset;
        const float a = at[first], b = at[second];
        at[first] = a * cosine - b * sine;
        at[second] = a * sine + b * cosine;
      }
    }
  }
}

void ReferenceBackend::scale(const StepView& /*step*/, TensorView x, float factor) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i < x.cols; ++i) x.row<float>(t)[i] *= factor;
  }
}

void ReferenceBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  for_each_row(step, [&](int row, const SequencePages& pages) {
    std::copy_n(x.row<float>(row), x.cols,
                dst.rows.row<float>(page_row(pages.latent, step.positions[row])));
  });
}

void ReferenceBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  for_each_row(step, [&](int row, const SequencePages& pages) {
    std::copy_n(x.row<float>(row), x.cols,
                dst.rows.row<float>(page_row(pages.index, step.positions[row])));
  });
}

void ReferenceBackend::select(const StepView& step, const SelectParams& params) {
  const IndexerDims& dims = params.dims;
  std::vector<float> scores;
  std::vector<std::int32_t> order;
  for_each_row(step, [&](int row, const SequencePages& pages) {
    const int visible = step.positions[row] + 1;
    std::int32_t& count = params.out.counts.row<std::int32_t>(row)[0];
    if (visible <= dims.top_k) {
      count = -1;
      return;
    }
    scores.assign(visible, 0.0f);
    for (int position = 0; position < visible; ++position) {
      const float* const key = params.keys.rows.row<float>(page_row(pages.index, position));
      for (int head = 0; head < dims.num_heads; ++head) {
        const float product =
            dot(params.queries.row<float>(row) + head * dims.head_dim, key, dims.head_dim);
        scores[position] += std::max(product, 0.0f) * params.weights.row<float>(row)[head];
      }
    }
    order.resize(visible);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    std::sort(order.begin(), order.begin() + dims.top_k);
    std::copy_n(order.begin(), dims.top_k, params.out.positions.row<std::int32_t>(row));
    count = dims.top_k;
  });
}

// Absorbed form: the key part of kv_b is applied to the query, the value part to the weighted
// latent.
void ReferenceBackend::attend(const StepView& step, const AttendParams& params) {
  const AttentionDims& dims = params.dims;
  const DenseWeight& kv_b = dense(*params.kv_b);
  std::vector<float> query(dims.latent_dim), mixed(dims.latent_dim), scores;
  std::vector<std::int32_t> positions;
  for_each_row(step, [&](int row, const SequencePages& pages) {
    const int count =
        params.selection == nullptr ? -1 : params.selection->counts.row<std::int32_t>(row)[0];
    positions.resize(count < 0 ? step.positions[row] + 1 : count);
    if (count < 0) {
      std::iota(positions.begin(), positions.end(), 0);
    } else {
      std::copy_n(params.selection->positions.row<std::int32_t>(row), count, positions.begin());
    }
    for (int head = 0; head < dims.num_heads; ++head) {
      const float* const q =
          params.queries.row<float>(row) + head * (dims.nope_dim + dims.rope_dim);
      const std::int64_t key_rows = std::int64_t{head} * (dims.nope_dim + dims.value_dim);
      std::fill(query.begin(), query.end(), 0.0f);
      for (int d = 0; d < dims.nope_dim; ++d) {
        for (int c = 0; c < dims.latent_dim; ++c) query[c] += q[d] * kv_b.row(key_rows + d)[c];
      }
      scores.resize(positions.size());
      for (std::size_t i = 0; i < positions.size(); ++i) {
        const float* const key =
            params.latents.rows.row<float>(page_row(pages.latent, positions[i]));
        scores[i] =
            dims.softmax_scale * (dot(query.data(), key, dims.latent_dim) +
                                  dot(q + dims.nope_dim, key + dims.latent_dim, dims.rope_dim));
      }
      softmax(scores);
      std::fill(mixed.begin(), mixed.end(), 0.0f);
      for (std::size_t i = 0; i < positions.size(); ++i) {
        const float* const key =
            params.latents.rows.row<float>(page_row(pages.latent, positions[i]));
        for (int c = 0; c < dims.latent_dim; ++c) mixed[c] += scores[i] * key[c];
      }
      for (int v = 0; v < dims.value_dim; ++v) {
        params.out.row<float>(row)[head * dims.value_dim + v] =
            dot(mixed.data(), kv_b.row(key_rows + dims.nope_dim + v), dims.latent_dim);
      }
    }
  });
}

void ReferenceBackend::silu_mul(const StepView& /*step*/, TensorView gate, TensorView up,
                                TensorView out) {
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) {
      out.row<float>(t)[i] = quant::silu_defined(gate.row<float>(t)[i]) * up.row<float>(t)[i];
    }
  }
}

void ReferenceBackend::route(const StepView& step, const RouteParams& params) {
  const auto top_k = static_cast<std::size_t>(params.spec.top_k);
  const auto num_experts = static_cast<std::size_t>(params.spec.num_experts);
  for (int row = 0; row < step.num_rows(); ++row) {
    const std::size_t at = row * top_k;
    route_row(params.spec, {params.logits.row<float>(row), num_experts},
              {params.bias.row<float>(0), num_experts},
              params.forced.empty() ? params.forced : params.forced.subspan(at, top_k),
              params.mailbox.experts.subspan(at, top_k), params.mailbox.weights.subspan(at, top_k));
  }
}

void ReferenceBackend::experts(const StepView& /*step*/, const ExpertParams& params) {
  for (const ExpertPart& part : params.parts) {
    CHECK(part.num_blocks == 1, "a run of blocks");
    if (!part.passes_guard()) continue;
    const ExpertUse& use = params.uses[part.use];
    for (std::size_t i = 0; i < use.rows.size(); ++i) {
      const auto slot = static_cast<std::int64_t>(use.slot_begin + i);
      const float* const x = params.x.row<float>(use.rows[i]);
      float* const hidden = params.hidden.row<float>(slot);
      float* const out = params.out.row<float>(slot);
      for (int r = 0; r < part.num_rows; ++r) {
        if (part.half == ExpertHalf::kGateUp) {
          hidden[part.row_begin + r] = quant::silu_defined(quant::dot_defined(part.gate, r, x)) *
                                       quant::dot_defined(part.up, r, x);
        } else {
          out[part.row_begin + r] = quant::dot_defined(part.down, r, hidden);
        }
      }
    }
  }
}

void ReferenceBackend::combine(const StepView& step, const CombineParams& params) {
  const std::size_t top_k = params.slots.size() / step.tokens.size();
  for (int row = 0; row < step.num_rows(); ++row) {
    for (std::int64_t i = 0; i < params.out.cols; ++i) {
      float sum = 0.0f;
      for (std::size_t j = row * top_k; j < (row + 1) * top_k; ++j) {
        sum = quant::fma_defined(params.expert_out.row<float>(params.slots[j])[i],
                                 params.weights[j], sum);
      }
      params.out.row<float>(row)[i] =
          params.shared.empty() ? sum : sum + params.shared.row<float>(row)[i];
    }
  }
}

}  // namespace stoker
