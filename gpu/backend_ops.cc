// Operations: each checks what it was given and hands it to its kernel.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "gpu/backend.h"
#include "gpu/error.h"
#include "gpu/run-inl.h"
#include "gpu/weights.h"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

constexpr std::int64_t kWidenedBytes = std::int64_t{128} << 20;
constexpr std::int64_t kPanelAlign = 256;  // outputs of a panel, so that its blocks are whole
constexpr int kScoreRows = 64;  // rows whose scores are held at once: at most 42 MB at 163840

const QuantView& view_of(const BackendWeight& weight) {
  const auto* cuda = dynamic_cast<const CudaWeight*>(&weight);
  CHECK(cuda != nullptr, "a weight of another backend");
  return cuda->view();
}

void check_rows(const StepView& step, const TensorView& x) {
  CHECK(x.rows == step.num_rows(), "{} rows in a step of {}", x.rows, step.num_rows());
}

// Positions that the row which sees the most sees.
int max_visible(std::span<const std::int32_t> positions) {
  return positions.empty() ? 0 : *std::max_element(positions.begin(), positions.end()) + 1;
}

template <typename T>
T* at(const DeviceBuffer& buffer, std::size_t index) {
  return reinterpret_cast<T*>(buffer.data()) + index;
}

}  // namespace

void CudaBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  check_rows(step, out);
  run([&] { return launch_embed({view_of(table), steps_.tables(step).tokens, out}, stream_); });
}

void CudaBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                         TensorView y) {
  check_rows(step, x);
  const QuantView& w = view_of(weight);
  run([&]() -> Status {
    for (std::size_t begin = 0; begin < step.ranges.size();) {
      // Ranges of one purpose, together.
      const RowRange& first = step.ranges[begin];
      int num_rows = 0;
      for (; begin < step.ranges.size() && step.ranges[begin].purpose == first.purpose; ++begin) {
        num_rows += step.ranges[begin].num_rows;
      }
      const TensorView from = x.row_slice(first.row_begin, num_rows);
      const TensorView to = y.row_slice(first.row_begin, num_rows);
      RETURN_IF_ERROR(first.purpose == Purpose::kPrefill ? multiply_many(w, from, to)
                                                         : multiply_few(w, from, to));
    }
    return {};
  });
}

Status CudaBackend::multiply_few(const QuantView& w, const TensorView& x, const TensorView& y) {
  if (!suits_linear_few(w, x.dtype)) return launch_gemv({w, x, y}, stream_);
  const LinearScratchSize scratch = linear_few_scratch(w, x.rows);
  RETURN_IF_ERROR(partials_.grow(scratch.partial_bytes), "partial sums of a linear");
  RETURN_IF_ERROR(counters_.grow(scratch.counter_bytes), "counters of a linear");
  return launch_linear_few({w, x, y, {at<float>(partials_, 0), at<unsigned>(counters_, 0)}},
                           stream_);
}

Status CudaBackend::multiply_many(const QuantView& w, const TensorView& x, const TensorView& y) {
  if (cublaslt_ == nullptr || !suits_linear_few(w, x.dtype) || !CublasLt::suits(x, y)) {
    return multiply_few(w, x, y);
  }
  // Panels of outputs, so that the widened weight stays small beside the weight itself.
  const std::int64_t panel_rows = std::max(
      std::int64_t{quant::kTileRows}, kWidenedBytes / (2 * w.cols) / kPanelAlign * kPanelAlign);
  RETURN_IF_ERROR(widened_.grow(std::min(panel_rows, w.rows) * w.cols * 2), "a widened weight");
  auto* const widened = at<bf16>(widened_, 0);
  for (std::int64_t begin = 0; begin < w.rows; begin += panel_rows) {
    const std::int64_t num_rows = std::min(panel_rows, w.rows - begin);
    RETURN_IF_ERROR(launch_widen({w, begin, num_rows, widened}, stream_));
    RETURN_IF_ERROR(cublaslt_->multiply(widened, x, y.col_slice(begin, num_rows), stream_));
  }
  return {};
}

void CudaBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                         TensorView y) {
  CHECK(x.rows == static_cast<std::int64_t>(step.logit_rows.size()) && y.dtype == DType::kF32,
        "{} rows of {} logit rows", x.rows, step.logit_rows.size());
  run([&] { return multiply_few(view_of(head), x, y); });
}

void CudaBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  check_rows(step, x);
  CHECK(out.rows == static_cast<std::int64_t>(step.logit_rows.size()), "{} rows of {} logit rows",
        out.rows, step.logit_rows.size());
  run([&] { return launch_gather_rows(x, steps_.tables(step).logit_rows, out, stream_); });
}

void CudaBackend::rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                           TensorView out) {
  check_rows(step, x);
  run([&] { return launch_rms_norm({x, {}, ResidualUse::kNone, weight, out, eps}, stream_); });
}

void CudaBackend::add_rms_norm(const StepView& step, TensorView h, TensorView residual, bool first,
                               TensorView weight, float eps, TensorView out) {
  check_rows(step, h);
  const ResidualUse use = first ? ResidualUse::kSet : ResidualUse::kAdd;
  run([&] { return launch_rms_norm({h, residual, use, weight, out, eps}, stream_); });
}

void CudaBackend::layer_norm(const StepView& step, TensorView x, TensorView weight, TensorView bias,
                             float eps) {
  check_rows(step, x);
  run([&] { return launch_layer_norm({x, weight, bias, eps}, stream_); });
}

void CudaBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                       int offset, int rope_dim, RopeStyle style) {
  check_rows(step, x);
  CHECK(inv_freq_.bytes() == std::int64_t{rope_dim / 2} * 4, "rope of {}: set_rope gave {} bytes",
        rope_dim, inv_freq_.bytes());
  run([&] {
    return launch_rope({x, steps_.tables(step).positions, at<const float>(inv_freq_, 0), num_heads,
                        head_stride, offset, rope_dim, style},
                       stream_);
  });
}

void CudaBackend::scale(const StepView& step, TensorView x, float factor) {
  check_rows(step, x);
  run([&] { return launch_scale(x, factor, stream_); });
}

void CudaBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  check_rows(step, x);
  run([&] {
    const StepTables& tables = steps_.tables(step);
    return launch_append({x, dst.rows, tables.positions, tables.latent_first, tables.latent_pages},
                         stream_);
  });
}

void CudaBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  check_rows(step, x);
  run([&] {
    const StepTables& tables = steps_.tables(step);
    return launch_append({x, dst.rows, tables.positions, tables.index_first, tables.index_pages},
                         stream_);
  });
}

void CudaBackend::select(const StepView& step, const SelectParams& params) {
  check_rows(step, params.queries);
  run([&] { return select_rows(step, params); });
}

Status CudaBackend::select_rows(const StepView& step, const SelectParams& params) {
  const StepTables& tables = steps_.tables(step);
  for (int begin = 0; begin < step.num_rows(); begin += kScoreRows) {
    const int num_rows = std::min(kScoreRows, step.num_rows() - begin);
    const auto positions =
        step.positions.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(num_rows));
    const int most_visible = max_visible(positions);
    const std::int64_t stride = (std::int64_t{most_visible} + 3) / 4 * 4;
    if (most_visible > params.dims.top_k) {
      // Grown by half as much again, so that a growing context seldom allocates.
      const std::int64_t needed = num_rows * stride * 4;
      if (scores_.bytes() < needed) RETURN_IF_ERROR(scores_.grow(needed + needed / 2), "scores");
    }
    float* scores = at<float>(scores_, 0);
    RETURN_IF_ERROR(
        launch_index_scores({params.dims, params.queries, params.weights, params.keys.rows, tables,
                             begin, num_rows, most_visible, scores, stride},
                            stream_));
    RETURN_IF_ERROR(launch_top_k(
        {params.dims.top_k, tables.positions, begin, num_rows, scores, stride, params.out},
        stream_));
  }
  return {};
}

void CudaBackend::attend(const StepView& step, const AttendParams& params) {
  check_rows(step, params.queries);
  run([&]() -> Status {
    const bool sparse = params.selection != nullptr;
    AttendRowsParams rows{params.dims,
                          params.queries,
                          view_of(*params.kv_b),
                          params.latents.rows,
                          steps_.tables(step),
                          step.ranges,
                          max_visible(step.positions),
                          sparse,
                          sparse ? *params.selection : Selection{},
                          params.out,
                          nullptr};
    RETURN_IF_ERROR(attend_scratch_.grow(attend_scratch_bytes(rows)), "sums of attention");
    rows.scratch = attend_scratch_.data();
    return launch_attend(rows, stream_);
  });
}

void CudaBackend::silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) {
  check_rows(step, out);
  run([&] { return launch_silu_mul(gate, up, out, stream_); });
}

void CudaBackend::route(const StepView& step, const RouteParams& params) {
  check_rows(step, params.logits);
  run([&] { return route_rows(params); });
}

Status CudaBackend::route_rows(const RouteParams& params) {
  const std::size_t num_choices =
      static_cast<std::size_t>(params.logits.rows) * static_cast<std::size_t>(params.spec.top_k);
  const RouteMailbox& mailbox = params.mailbox;
  CHECK(mailbox.experts.size() == num_choices && mailbox.weights.size() == num_choices,
        "a mailbox of {} for {} choices", mailbox.experts.size(), num_choices);
  RETURN_IF_ERROR(routes_.grow(static_cast<std::int64_t>(3 * num_choices * 4)), "routes");
  auto* experts = at<std::int32_t>(routes_, 0);
  auto* weights = at<float>(routes_, num_choices);
  std::int32_t* forced = nullptr;
  if (!params.forced.empty()) {
    CHECK(params.forced.size() == num_choices, "{} forced experts", params.forced.size());
    for (const std::int32_t expert : params.forced) {
      if (expert < 0 || expert >= params.spec.num_experts) {
        return make_error(ErrorCode::kInvalidArgument, "forced expert {} of {}", expert,
                          params.spec.num_experts);
      }
    }
    forced = at<std::int32_t>(routes_, 2 * num_choices);
    RETURN_IF_ERROR(staging_.copy(forced, params.forced.data(),
                                  static_cast<std::int64_t>(num_choices * 4), stream_));
  }
  RETURN_IF_ERROR(
      launch_route({params.spec, params.logits, params.bias, forced, experts, weights}, stream_));
  const auto handle = static_cast<cudaStream_t>(stream_.handle());
  RETURN_IF_ERROR(cuda_status(cudaMemcpyAsync(mailbox.experts.data(), experts, num_choices * 4,
                                              cudaMemcpyDeviceToHost, handle),
                              "posting chosen experts"));
  return cuda_status(cudaMemcpyAsync(mailbox.weights.data(), weights, num_choices * 4,
                                     cudaMemcpyDeviceToHost, handle),
                     "posting router weights");
}

}  // namespace stoker::gpu
