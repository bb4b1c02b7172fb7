#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "core/base/check.h"
#include "cpu/cpu_weight.h"
#include "cpu/router.h"

namespace stoker {

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options) {
  CHECK(options.team != nullptr, "a CPU backend needs a Team");
  if (options.activations != DType::kBf16 && options.activations != DType::kF32) {
    return make_error(ErrorCode::kUnsupported,
                      "the CPU backend keeps activations as BF16 or F32, not {}",
                      dtype_name(options.activations));
  }
  if (!isa_available(options.isa)) {
    return make_error(ErrorCode::kUnsupported, "this machine has no {}", isa_name(options.isa));
  }
  return std::unique_ptr<Backend>(std::make_unique<cpu::CpuBackend>(options));
}

}  // namespace stoker

namespace stoker::cpu {
namespace {

// Elements of elementwise work that are worth waking another thread for.
constexpr std::int64_t kTaskElements = std::int64_t{32} << 10;

std::byte* row_at(const TensorView& view, std::int64_t row, std::int64_t col = 0) {
  return static_cast<std::byte*>(view.data) +
         (row * view.row_stride + col) * dtype_bytes(view.dtype);
}

void copy_rows(const TensorView& dst, const std::byte* src, std::int64_t src_stride_bytes) {
  const std::size_t bytes = static_cast<std::size_t>(dst.cols) * dtype_bytes(dst.dtype);
  for (std::int64_t r = 0; r < dst.rows; ++r) {
    std::memmove(row_at(dst, r), src + r * src_stride_bytes, bytes);
  }
}

const TileMatrix& matrix_of(const BackendWeight& weight) {
  return static_cast<const TiledWeight&>(weight).matrix();
}

}  // namespace

CpuBackend::CpuBackend(const CpuBackendOptions& options)
    : team_(*options.team),
      kernels_(kernels_for(options.isa)),
      activations_(options.activations),
      kv_format_(options.kv_format),
      products_(team_, kernels_, activations_, options.isa),
      attention_(team_, kernels_, activations_),
      row_scratch_(team_.num_threads()) {}

// ---- Memory ----

Result<Tensor> CpuBackend::allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
  TensorView view = make_view(nullptr, dtype, rows, cols);
  ASSIGN_OR_RETURN(Memory memory, Memory::create(view.bytes()));
  std::memset(memory.data(), 0, memory.bytes());  // what is reserved is there
  view.data = memory.data();
  auto owner = std::make_shared<Memory>(std::move(memory));
  return Tensor(view, [owner](void*) {});
}

Result<WeightPtr> CpuBackend::adopt(const QuantView& host) {
  RETURN_IF_ERROR(products_.prepare(host.cols, host.spec.format));
  ASSIGN_OR_RETURN(std::unique_ptr<TiledWeight> weight, TiledWeight::create(host, team_));
  return WeightPtr(std::move(weight));
}

Result<WeightPtr> CpuBackend::adopt_embedding(const QuantView& host) {
  ASSIGN_OR_RETURN(std::unique_ptr<EmbeddingWeight> weight, EmbeddingWeight::create(host));
  for (Scratch& scratch : row_scratch_) scratch.reserve_array<float>(host.cols);
  return WeightPtr(std::move(weight));
}

Result<WeightPtr> CpuBackend::adopt_kv_b(const QuantView& host, const AttentionDims& dims) {
  ASSIGN_OR_RETURN(std::unique_ptr<KvBWeight> weight, KvBWeight::create(host, dims, team_));
  return WeightPtr(std::move(weight));
}

Result<Tensor> CpuBackend::adopt_vector(const TensorView& host) {
  ASSIGN_OR_RETURN(Tensor tensor, allocate(DType::kF32, 1, host.cols));
  auto* const out = tensor.view().row<float>(0);
  switch (host.dtype) {
    case DType::kF32:
    case DType::kBf16:
      kernels_.convert(host.data, host.dtype, out, DType::kF32, host.cols);
      return tensor;
    case DType::kF16:
      for (std::int64_t i = 0; i < host.cols; ++i) out[i] = to_f32(host.row<f16>(0)[i]);
      return tensor;
    default:
      return make_error(ErrorCode::kUnsupported, "a vector of {}", dtype_name(host.dtype));
  }
}

Status CpuBackend::set_rope(std::span<const float> inv_freq) {
  inv_freq_.assign(inv_freq.begin(), inv_freq.end());
  angle_positions_.clear();
  return {};
}

// ---- Order ----

Status CpuBackend::begin_step(const StepView& /*step*/) {
  status_ = {};
  return {};
}

void CpuBackend::wait_for(Backend& other, Event event) {
  while (!other.done(event)) std::this_thread::yield();
}

// ---- Copies ----

void CpuBackend::copy_in(const TensorView& dst, const void* src) {
  copy_rows(dst, static_cast<const std::byte*>(src), dst.cols * dtype_bytes(dst.dtype));
}

void CpuBackend::copy_out(void* dst, const TensorView& src) {
  copy_rows(make_view(dst, src.dtype, src.rows, src.cols), static_cast<std::byte*>(src.data),
            src.row_stride * dtype_bytes(src.dtype));
}

void CpuBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(dst.rows == src.rows && dst.cols == src.cols && dst.dtype == src.dtype,
        "[{}, {}] from [{}, {}]", dst.rows, dst.cols, src.rows, src.cols);
  copy_rows(dst, static_cast<std::byte*>(src.data), src.row_stride * dtype_bytes(src.dtype));
}

// ---- Rows ----

void CpuBackend::for_rows(std::int64_t num_rows, std::int64_t row_cost,
                          FunctionRef<void(std::int64_t)> fn) {
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kTaskElements / std::max<std::int64_t>(1, row_cost));
  const auto num_tasks = static_cast<int>((num_rows + rows_per_task - 1) / rows_per_task);
  team_.run(num_tasks, [&](int task, int) {
    const std::int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
    for (std::int64_t row = task * rows_per_task; row < end; ++row) fn(row);
  });
}

void CpuBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  const auto& embedding = static_cast<const EmbeddingWeight&>(table);
  team_.run(step.num_rows(), [&](int row, int worker) {
    const TokenId token = step.tokens[row];
    CHECK(token >= 0 && token < embedding.rows(), "token {} of {}", token, embedding.rows());
    embedding.read_row(kernels_, token, out.dtype, row_at(out, row),
                       static_cast<float*>(row_scratch_[worker].reserve(0)));
  });
}

void CpuBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  for (std::size_t i = 0; i < step.logit_rows.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    kernels_.convert(row_at(x, step.logit_rows[i]), x.dtype, row_at(out, row), out.dtype, x.cols);
  }
}

void CpuBackend::rms_norm(const StepView& /*step*/, TensorView x, TensorView weight, float eps,
                          TensorView out) {
  for_rows(x.rows, x.cols, [&](std::int64_t t) {
    kernels_.rms_norm(row_at(x, t), row_at(out, t), x.dtype, weight.row<float>(0), eps, x.cols);
  });
}

void CpuBackend::add_rms_norm(const StepView& /*step*/, TensorView h, TensorView residual,
                              bool first, TensorView weight, float eps, TensorView out) {
  for_rows(h.rows, h.cols, [&](std::int64_t t) {
    kernels_.add_rms_norm(row_at(h, t), row_at(residual, t), row_at(out, t), h.dtype, first,
                          weight.row<float>(0), eps, h.cols);
  });
}

void CpuBackend::layer_norm(const StepView& /*step*/, TensorView x, TensorView weight,
                            TensorView bias, float eps) {
  for_rows(x.rows, x.cols, [&](std::int64_t t) {
    kernels_.layer_norm(row_at(x, t), x.dtype, weight.row<float>(0), bias.row<float>(0), eps,
                        x.cols);
  });
}

// Angles are F32 products (spec 3.3); their cosines are taken in double, so that the bits do not
// depend on which of its variants the math library picks for the machine.
void CpuBackend::update_angles(const StepView& step) {
  if (std::equal(step.positions.begin(), step.positions.end(), angle_positions_.begin(),
                 angle_positions_.end())) {
    return;
  }
  angle_positions_.assign(step.positions.begin(), step.positions.end());
  const std::size_t half = inv_freq_.size();
  cos_.resize(std::max(cos_.size(), step.positions.size() * half));
  sin_.resize(cos_.size());
  for_rows(step.num_rows(), static_cast<std::int64_t>(half) * 64, [&](std::int64_t t) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = static_cast<float>(step.positions[t]) * inv_freq_[i];
      cos_[t * half + i] = static_cast<float>(std::cos(angle));
      sin_[t * half + i] = static_cast<float>(std::sin(angle));
    }
  });
}

void CpuBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                      int offset, int rope_dim, RopeStyle style) {
  const int half = rope_dim / 2;
  CHECK(static_cast<int>(inv_freq_.size()) == half, "{} frequencies for {} dimensions",
        inv_freq_.size(), rope_dim);
  update_angles(step);
  for_rows(step.num_rows(), std::int64_t{num_heads} * rope_dim, [&](std::int64_t t) {
    for (int head = 0; head < num_heads; ++head) {
      kernels_.rope(row_at(x, t, std::int64_t{head} * head_stride + offset), x.dtype,
                    &cos_[t * half], &sin_[t * half], half, style == RopeStyle::kInterleaved);
    }
  });
}

void CpuBackend::scale(const StepView& /*step*/, TensorView x, float factor) {
  for_rows(x.rows, x.cols,
           [&](std::int64_t t) { kernels_.scale(x.row<float>(t), factor, x.cols); });
}

void CpuBackend::silu_mul(const StepView& /*step*/, TensorView gate, TensorView up,
                          TensorView out) {
  for_rows(out.rows, out.cols, [&](std::int64_t t) {
    kernels_.silu_mul(row_at(gate, t), row_at(up, t), row_at(out, t), out.dtype, out.cols);
  });
}

void CpuBackend::append(const StepView& step, const TensorView& x, const KvLayer& dst,
                        std::span<const std::int32_t> SequencePages::* stream, bool rotated) {
  CHECK(!dst.is_fp8() || dst.row.num_values() == x.cols, "rows of {} values, {} appended",
        dst.row.num_values(), x.cols);
  if (dst.is_fp8()) kv_row_.resize(x.cols);
  for (const RowRange& range : step.ranges) {
    const std::span<const std::int32_t> pages = step.sequences[range.sequence].*stream;
    for (int t = range.row_begin; t < range.row_begin + range.num_rows; ++t) {
      const std::int32_t position = step.positions[t];
      const std::int64_t row =
          std::int64_t{pages[position / kPageTokens]} * kPageTokens + position % kPageTokens;
      std::byte* const to = row_at(dst.rows, row);
      if (!dst.is_fp8()) {
        kernels_.convert(row_at(x, t), x.dtype, to, dst.rows.dtype, x.cols);
        continue;
      }
      kernels_.convert(row_at(x, t), x.dtype, kv_row_.data(), DType::kF32, x.cols);
      if (rotated) quant::rotate_index_vector(kv_row_.data(), static_cast<int>(x.cols));
      quant::encode_kv_row(dst.row, kv_row_.data(), to);
    }
  }
}

void CpuBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  append(step, x, dst, &SequencePages::latent, /*rotated=*/false);
}

void CpuBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  append(step, x, dst, &SequencePages::index, /*rotated=*/true);
}

void CpuBackend::select(const StepView& step, const SelectParams& params) {
  attention_.select(step, params);
}

void CpuBackend::attend(const StepView& step, const AttendParams& params) {
  attention_.attend(step, params);
}

// ---- Products ----

void CpuBackend::multiply(const StepView& step, const TileMatrix& w, const TileMatrix& up,
                          const TensorView& x, const TensorView& out) {
  products_.begin(w.cols, products_.panel_dtype(w.format));
  for (const Purpose purpose : {Purpose::kDecode, Purpose::kPrefill}) {
    std::int32_t* const staged = products_.indices(step.tokens.size());
    std::int32_t* const rows = products_.indices(step.tokens.size());
    int count = 0;
    for (const RowRange& range : step.ranges) {
      if (range.purpose != purpose) continue;
      for (int t = range.row_begin; t < range.row_begin + range.num_rows; ++t) {
        staged[count] = products_.stage(purpose, x, t);
        rows[count++] = t;
      }
    }
    products_.add({purpose, w, up, staged, count, out, rows});
  }
  products_.run();
}

void CpuBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                        TensorView y) {
  multiply(step, matrix_of(weight), {}, x, y);
}

void CpuBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                        TensorView y) {
  const TileMatrix& w = matrix_of(head);
  const std::size_t count = step.logit_rows.size();
  products_.begin(w.cols, DType::kF32);
  std::int32_t* const staged = products_.indices(count);
  for (std::size_t i = 0; i < count; ++i) {
    staged[i] = products_.stage(Purpose::kDecode, x, static_cast<std::int64_t>(i));
  }
  products_.add({Purpose::kDecode, w, {}, staged, static_cast<int>(count), y, nullptr});
  products_.run();
}

void CpuBackend::gated_ffn(const StepView& step, const BackendWeight& gate, const BackendWeight& up,
                           const BackendWeight& down, TensorView x, TensorView gate_out,
                           TensorView /*up_out*/, TensorView out) {
  multiply(step, matrix_of(gate), matrix_of(up), x, gate_out);
  multiply(step, matrix_of(down), {}, gate_out, out);
}

void CpuBackend::route(const StepView& step, const RouteParams& params) {
  const auto top_k = static_cast<std::size_t>(params.spec.top_k);
  const auto num_experts = static_cast<std::size_t>(params.spec.num_experts);
  for_rows(step.num_rows(), params.spec.num_experts * 32, [&](std::int64_t row) {
    const std::size_t at = row * top_k;
    route_row(params.spec, {params.logits.row<float>(row), num_experts},
              {params.bias.row<float>(0), num_experts},
              params.forced.empty() ? params.forced : params.forced.subspan(at, top_k),
              params.mailbox.experts.subspan(at, top_k), params.mailbox.weights.subspan(at, top_k));
  });
}

void CpuBackend::pass_guards(std::span<const ExpertPart> parts) {
  part_usable_.assign(parts.size(), 1);
  guarded_parts_.clear();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].guard != nullptr) guarded_parts_.push_back(static_cast<int>(i));
  }
  team_.run(static_cast<int>(guarded_parts_.size()), [&](int task, int) {
    const int index = guarded_parts_[task];
    part_usable_[index] = parts[index].passes_guard() ? 1 : 0;
  });
}

bool CpuBackend::check_part(const ExpertPart& part) {
  const bool gate_up = part.half == ExpertHalf::kGateUp;
  const QuantView& view = gate_up ? part.gate : part.down;
  if (view.layout == WeightLayout::kTile16 && view.device == kHost &&
      (!gate_up || part.up.spec == part.gate.spec)) {
    const Status prepared = products_.prepare(view.cols, view.spec.format);
    if (prepared.ok()) return true;
    if (status_.ok()) status_ = prepared;
  } else if (status_.ok()) {
    status_ = make_error(ErrorCode::kUnsupported,
                         "the CPU computes experts in tile16 layout in host memory, gate and up of "
                         "one format");
  }
  return false;
}

CpuBackend::StagedUse CpuBackend::stage_use(const ExpertParams& params, const ExpertUse& use,
                                            ExpertHalf half) {
  std::int32_t* const rows = products_.indices(use.rows.size());
  std::int32_t* const slots = products_.indices(use.rows.size());
  for (int i = 0; i < static_cast<int>(use.rows.size()); ++i) {
    const Purpose purpose = i < use.num_decode_rows ? Purpose::kDecode : Purpose::kPrefill;
    slots[i] = use.slot_begin + i;
    rows[i] = half == ExpertHalf::kGateUp ? products_.stage(purpose, params.x, use.rows[i])
                                          : products_.stage(purpose, params.hidden, slots[i]);
  }
  return {rows, slots};
}

void CpuBackend::expert_half(const ExpertParams& params, ExpertHalf half, DType panel_dtype) {
  const bool gate_up = half == ExpertHalf::kGateUp;
  bool begun = false;
  for (std::size_t i = 0; i < params.parts.size(); ++i) {
    const ExpertPart& part = params.parts[i];
    if (part.half != half || part_usable_[i] == 0) continue;
    const QuantView& view = gate_up ? part.gate : part.down;
    if (products_.panel_dtype(view.spec.format) != panel_dtype || !check_part(part)) continue;
    if (!begun) {
      products_.begin(view.cols, panel_dtype);
      staged_.assign(params.uses.size(), {});
      begun = true;
    }
    const ExpertUse& use = params.uses[part.use];
    StagedUse& staged = staged_[part.use];
    if (staged.rows == nullptr) staged = stage_use(params, use, half);
    const TensorView out =
        (gate_up ? params.hidden : params.out).col_slice(part.row_begin, part.num_rows);
    const TileMatrix w = tile_matrix(view);
    const TileMatrix up = gate_up ? tile_matrix(part.up) : TileMatrix{};
    const int decode = use.num_decode_rows;
    const int prefill = static_cast<int>(use.rows.size()) - decode;
    products_.add({Purpose::kDecode, w, up, staged.rows, decode, out, staged.slots});
    products_.add(
        {Purpose::kPrefill, w, up, staged.rows + decode, prefill, out, staged.slots + decode});
  }
  if (begun) products_.run();
}

void CpuBackend::experts(const StepView& /*step*/, const ExpertParams& params) {
  for (const ExpertPart& part : params.parts) CHECK(part.num_blocks == 1, "a run of blocks");
  pass_guards(params.parts);
  for (const ExpertHalf half : {ExpertHalf::kGateUp, ExpertHalf::kDown}) {
    expert_half(params, half, DType::kBf16);
    expert_half(params, half, DType::kF32);
  }
}

void CpuBackend::combine(const StepView& step, const CombineParams& params) {
  const auto num_rows = static_cast<std::size_t>(step.num_rows());
  const std::size_t top_k = params.slots.size() / num_rows;
  for_rows(step.num_rows(), params.out.cols * static_cast<std::int64_t>(top_k),
           [&](std::int64_t row) {
             kernels_.combine(params.expert_out.data, params.expert_out.row_stride,
                              &params.slots[row * top_k], &params.weights[row * top_k],
                              static_cast<int>(top_k),
                              params.shared.empty() ? nullptr : row_at(params.shared, row),
                              row_at(params.out, row), params.out.dtype, params.out.cols);
           });
}

}  // namespace stoker::cpu
