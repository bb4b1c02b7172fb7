// Operations: each checks what it was given and hands it to its kernel.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

#include "gpu/backend.h"
#include "gpu/error.h"
#include "gpu/kernels/common/linear_places.h"
#include "gpu/run-inl.h"
#include "gpu/weights.h"
#include "quant/tile16.h"

namespace stoker::gpu {
namespace {

const QuantView& view_of(const BackendWeight& weight) {
  const auto* cuda = dynamic_cast<const CudaWeight*>(&weight);
  CHECK(cuda != nullptr, "a weight of another backend");
  return cuda->view();
}

void check_rows(const StepView& step, const TensorView& x) {
  CHECK(x.rows == step.num_rows(), "{} rows in a step of {}", x.rows, step.num_rows());
}

Status check_forced(const RouteParams& params) {
  for (const std::int32_t expert : params.forced) {
    if (expert < 0 || expert >= params.spec.num_experts) {
      return make_error(ErrorCode::kInvalidArgument, "forced expert {} of {}", expert,
                        params.spec.num_experts);
    }
  }
  return {};
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
  const LinearOutput output{&weight, y};
  linears(step, {&output, 1}, x);
}

void CudaBackend::linears(const StepView& step, std::span<const LinearOutput> outputs,
                          TensorView x) {
  check_rows(step, x);
  run([&]() -> Status {
    std::array<LinearFewOutput, kMostLinearsJoined> some;
    for (std::size_t begin = 0; begin < outputs.size(); begin += some.size()) {
      const std::size_t count = std::min(some.size(), outputs.size() - begin);
      for (std::size_t i = 0; i < count; ++i) {
        const LinearOutput& output = outputs[begin + i];
        some[i] = {view_of(*output.weight), output.y};
      }
      RETURN_IF_ERROR(multiply(step, {some.data(), count}, x));
    }
    return {};
  });
}

Status CudaBackend::multiply(const StepView& step, std::span<const LinearFewOutput> outputs,
                             const TensorView& x) {
  for (std::size_t begin = 0; begin < step.ranges.size();) {
    // Ranges of one purpose, together.
    const RowRange& first = step.ranges[begin];
    int num_rows = 0;
    for (; begin < step.ranges.size() && step.ranges[begin].purpose == first.purpose; ++begin) {
      num_rows += step.ranges[begin].num_rows;
    }
    const TensorView from = x.row_slice(first.row_begin, num_rows);
    std::array<LinearFewOutput, kMostLinearsJoined> to;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      to[i] = {outputs[i].weight, outputs[i].y.row_slice(first.row_begin, num_rows)};
    }
    const std::span<const LinearFewOutput> wanted = std::span(to).first(outputs.size());
    if (first.purpose == Purpose::kDecode) {
      RETURN_IF_ERROR(multiply_few(wanted, from));
    } else {
      for (const LinearFewOutput& output : wanted) RETURN_IF_ERROR(multiply_many(output, from));
    }
    after_route_ = false;
  }
  return {};
}

int CudaBackend::most_visible(const StepView& step, std::span<const std::int32_t> positions,
                              int boundary) {
  if (positions.empty()) return 0;
  const int visible = *std::max_element(positions.begin(), positions.end()) + 1;
  if (!step.may_have_parts()) return visible;
  const VisibleRange range = visible_range(visible, boundary);
  graphs_.narrow(range);
  return range.last;
}

// Those of one format that tensor cores take go together, and those of another beside them.
Status CudaBackend::multiply_few(std::span<const LinearFewOutput> outputs, const TensorView& x) {
  struct Joined {
    std::array<LinearFewOutput, kMostLinearsJoined> outputs;
    std::size_t count = 0;
    LinearScratchSize scratch;
    bool is_cut = false;  // its last launch is that of a cut matrix
  };
  // 1. Each its own part of the scratch.
  std::array<Joined, 2> both;  // FP8, BF16
  LinearScratchSize scratch;
  for (const LinearFewOutput& output : outputs) {
    const QuantView& w = output.weight;
    if (!suits_linear_few(w, x.dtype)) continue;
    Joined& joined = both[w.spec.format == QuantFormat::kBf16 ? 1 : 0];
    joined.outputs[joined.count++] = output;
    joined.is_cut = joined.is_cut || !streams_linear(w);
    const LinearScratchSize size = linear_few_scratch(w, x.rows);
    joined.scratch += size;
    scratch += size;
  }
  DeviceBuffer &partials = scratch_.linear_partials, &counters = scratch_.linear_counters;
  RETURN_IF_ERROR(partials.grow(scratch.partial_bytes), "partial sums of linears");
  RETURN_IF_ERROR(counters.grow(scratch.counter_bytes), "counters of linears");
  // 2. The launches.
  LinearScratchSize used;
  const bool at_once = x.rows <= kLinearFewRows;  // one launch for all rows
  bool is_sibling = at_once && after_route_;
  for (const Joined& joined : both) {
    if (joined.count == 0) continue;
    const bool has_sibling = at_once && &joined == &both[0] && joined.is_cut && both[1].count > 0;
    RETURN_IF_ERROR(launch_linear_few({.outputs = {joined.outputs.data(), joined.count},
                                       .x = x,
                                       .scratch = {at<float>(partials, used.partial_bytes / 4),
                                                   at<unsigned>(counters, used.counter_bytes / 4)},
                                       .is_sibling = is_sibling,
                                       .has_sibling = has_sibling},
                                      stream_));
    is_sibling = has_sibling;
    used += joined.scratch;
  }
  for (const LinearFewOutput& output : outputs) {
    if (suits_linear_few(output.weight, x.dtype)) continue;
    RETURN_IF_ERROR(launch_gemv({output.weight, x, output.y}, stream_));
  }
  return {};
}

Status CudaBackend::multiply_many(const LinearFewOutput& output, const TensorView& x) {
  const QuantView& w = output.weight;
  const TensorView& y = output.y;
  // Panels of outputs, so that the widened weight stays small beside the weight itself.
  const std::int64_t panel_rows = widened_rows(w.rows, w.cols);
  bool library_takes = cublaslt_ != nullptr && suits_linear_few(w, x.dtype);
  for (std::int64_t begin = 0; library_takes && begin < w.rows; begin += panel_rows) {
    const TensorView panel = y.col_slice(begin, std::min(panel_rows, w.rows - begin));
    ASSIGN_OR_RETURN(library_takes, cublaslt_->takes(x, panel));
  }
  if (!library_takes) return multiply_few({&output, 1}, x);
  RETURN_IF_ERROR(scratch_.widened_weight.grow(widened_bytes(w.rows, w.cols)), "a widened weight");
  auto* const widened = at<bf16>(scratch_.widened_weight, 0);
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
  const LinearFewOutput output{view_of(head), y};
  run([&] { return multiply_few({&output, 1}, x); });
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
  run([&] {
    return launch_rope({x, steps_.tables(step).positions, inv_freq(rope_dim), num_heads,
                        head_stride, offset, rope_dim, style},
                       stream_);
  });
}

const float* CudaBackend::inv_freq(int rope_dim) const {
  CHECK(inv_freq_.bytes() == std::int64_t{rope_dim / 2} * 4, "rope of {}: set_rope gave {} bytes",
        rope_dim, inv_freq_.bytes());
  return at<const float>(inv_freq_, 0);
}

void CudaBackend::scale(const StepView& step, TensorView x, float factor) {
  check_rows(step, x);
  run([&] { return launch_scale(x, factor, stream_); });
}

void CudaBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  check_rows(step, x);
  run([&] {
    const StepTables& tables = steps_.tables(step);
    return launch_append(
        {x, dst, /*rotated=*/false, tables.positions, tables.latent_first, tables.latent_pages},
        stream_);
  });
}

void CudaBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  check_rows(step, x);
  run([&] {
    const StepTables& tables = steps_.tables(step);
    return launch_append(
        {x, dst, /*rotated=*/true, tables.positions, tables.index_first, tables.index_pages},
        stream_);
  });
}

void CudaBackend::prepare_attention(const StepView& step, const AttentionInputParams& params) {
  check_rows(step, params.kv_a);
  if (params.dims.latent_dim > kMostFusedLatent) return Backend::prepare_attention(step, params);
  run([&] {
    return launch_attention_inputs({params, steps_.tables(step), inv_freq(params.dims.rope_dim)},
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
    const int visible = most_visible(step, positions, params.dims.top_k);
    const std::int64_t stride = score_stride(visible);
    DeviceBuffer& held_scores = scratch_.index_scores;
    if (visible > params.dims.top_k) {
      // Grown by half as much again, so that a growing context seldom allocates.
      const std::int64_t needed = score_bytes(num_rows, visible);
      if (held_scores.bytes() < needed) {
        RETURN_IF_ERROR(held_scores.grow(needed + needed / 2), "scores");
      }
    }
    float* scores = at<float>(held_scores, 0);
    TensorView queries = params.queries.row_slice(begin, num_rows);
    if (params.keys.is_fp8() && visible > params.dims.top_k) {
      DeviceBuffer& held_queries = scratch_.index_queries;
      RETURN_IF_ERROR(held_queries.grow(index_query_bytes(num_rows, queries.cols)),
                      "queries of the indexer");
      const TensorView rounded =
          make_view(held_queries.data(), DType::kBf16, num_rows, queries.cols, device());
      RETURN_IF_ERROR(launch_round_index_queries({params.dims, queries, rounded}, stream_));
      queries = rounded;
    }
    RETURN_IF_ERROR(
        launch_index_scores({params.dims, queries, params.weights.row_slice(begin, num_rows),
                             params.keys, tables, begin, num_rows, visible, scores, stride},
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
    const int boundary = sparse ? static_cast<int>(params.selection->positions.cols) : 0;
    AttendRowsParams rows{params.dims,
                          params.queries,
                          view_of(*params.kv_b),
                          params.latents,
                          steps_.tables(step),
                          step.ranges,
                          most_visible(step, step.positions, boundary),
                          sparse,
                          sparse ? *params.selection : Selection{},
                          params.out,
                          nullptr};
    RETURN_IF_ERROR(scratch_.attention.grow(attend_scratch_bytes(rows)), "sums of attention");
    rows.scratch = scratch_.attention.data();
    return launch_attend(rows, stream_);
  });
}

void CudaBackend::silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) {
  check_rows(step, out);
  run([&] { return launch_silu_mul(gate, up, out, stream_); });
}

void CudaBackend::route(const StepView& step, const RouteParams& params) {
  check_rows(step, params.logits);
  if (status_.ok()) status_ = check_forced(params);
  run([&]() -> Status {
    RETURN_IF_ERROR(route_rows(params));
    route_was_last_ = true;
    return {};
  });
}

Status CudaBackend::route_rows(const RouteParams& params) {
  const std::size_t num_choices =
      static_cast<std::size_t>(params.logits.rows) * static_cast<std::size_t>(params.spec.top_k);
  const RouteMailbox& mailbox = params.mailbox;
  CHECK(mailbox.experts.size() == num_choices && mailbox.weights.size() == num_choices,
        "a mailbox of {} for {} choices", mailbox.experts.size(), num_choices);
  CHECK(params.forced.empty() || params.forced.size() == num_choices, "{} forced experts",
        params.forced.size());
  CHECK(is_pinned(mailbox.experts.data()) && is_pinned(mailbox.weights.data()) &&
            (params.forced.empty() || is_pinned(params.forced.data())),
        "a mailbox, or forced experts, not from allocate_host()");
  return launch_route({params.spec, params.logits, params.bias,
                       params.forced.empty() ? nullptr : params.forced.data(),
                       mailbox.experts.data(), mailbox.weights.data()},
                      stream_);
}

}  // namespace stoker::gpu
