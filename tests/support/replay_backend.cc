#include "tests/support/replay_backend.h"

#include <bit>

namespace stoker::test {
namespace {

void add(std::vector<std::uint64_t>& to, const void* address) {
  to.push_back(reinterpret_cast<std::uintptr_t>(address));
}
void add(std::vector<std::uint64_t>& to, int value) {
  to.push_back(static_cast<std::uint64_t>(value));
}
void add(std::vector<std::uint64_t>& to, float value) {
  to.push_back(std::bit_cast<std::uint32_t>(value));
}
void add(std::vector<std::uint64_t>& to, const TensorView& view) {
  add(to, view.data);
  for (const std::int64_t size : {view.rows, view.cols, view.row_stride}) {
    to.push_back(static_cast<std::uint64_t>(size));
  }
  add(to, static_cast<int>(view.dtype));
  add(to, view.device.index);
}
void add(std::vector<std::uint64_t>& to, const KvLayer& layer) { add(to, layer.rows); }
void add(std::vector<std::uint64_t>& to, const Selection& selection) {
  add(to, selection.positions);
  add(to, selection.counts);
}
void add(std::vector<std::uint64_t>& to, const std::vector<LinearOutput>& outputs) {
  for (const LinearOutput& output : outputs) {
    add(to, static_cast<const void*>(output.weight));
    add(to, output.y);
  }
}
template <typename T>
void add(std::vector<std::uint64_t>& to, std::span<T> span) {
  add(to, static_cast<const void*>(span.data()));
  to.push_back(span.size());
}

}  // namespace

void ReplayBackend::check_closed(std::string_view what) const {
  CHECK(!open_, "{} within part {}", what, open_ ? open_->part : 0);
}

template <typename... T>
void ReplayBackend::call(const char* name, std::function<void()> run, const T&... operands) {
  if (!open_) return run();
  Call made{{}, std::move(run)};
  add(made.operands, static_cast<const void*>(name));
  (add(made.operands, operands), ...);
  calls_.push_back(std::move(made));
}

void ReplayBackend::begin_part(const StepView& step, int part) {
  check_closed("a part");
  CHECK(step.may_have_parts(), "a part of a step of {} rows", step.num_rows());
  open_ = Key{&step, step.num_rows(), part};
}

void ReplayBackend::end_part() {
  CHECK(open_.has_value(), "no part is open");
  const auto [kept, is_first] = kept_.try_emplace(*open_, calls_);
  if (!is_first) {
    CHECK(kept->second.size() == calls_.size(), "part {}: {} calls, then {}", open_->part,
          kept->second.size(), calls_.size());
    for (std::size_t i = 0; i < calls_.size(); ++i) {
      CHECK(kept->second[i].operands == calls_[i].operands, "part {}: call {} is another one",
            open_->part, i);
    }
    counts_.num_calls_replayed += static_cast<int>(calls_.size());
  }
  ++(is_first ? counts_.num_first : counts_.num_replayed);
  counts_.num_kept = static_cast<int>(kept_.size());
  calls_.clear();
  open_.reset();
  for (const Call& call : kept->second) call.run();
}

void ReplayBackend::forget_parts(const StepView& step) {
  std::erase_if(kept_, [&](const auto& part) { return part.first.step == &step; });
  counts_.num_kept = static_cast<int>(kept_.size());
}

Status ReplayBackend::begin_step(const StepView& step) {
  check_closed("a step");
  return inner_->begin_step(step);
}
Event ReplayBackend::record() {
  if (open_) call("record", [] {});
  return inner_->record();
}
bool ReplayBackend::done(Event event) {
  check_closed("asking for an event");
  return inner_->done(event);
}
void ReplayBackend::wait_for(Backend& other, Event event) {
  check_closed("waiting");
  inner_->wait_for(other, event);
}
Status ReplayBackend::finish() {
  check_closed("waiting");
  return inner_->finish();
}

void ReplayBackend::copy_in(const TensorView& dst, const void* src) {
  call("copy_in", [=, this] { inner_->copy_in(dst, src); }, dst, src);
}
void ReplayBackend::copy_out(void* dst, const TensorView& src) {
  call("copy_out", [=, this] { inner_->copy_out(dst, src); }, static_cast<const void*>(dst), src);
}
void ReplayBackend::copy(const TensorView& dst, const TensorView& src) {
  call("copy", [=, this] { inner_->copy(dst, src); }, dst, src);
}
void ReplayBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  call("embed", [=, this, s = &step, w = &table] { inner_->embed(*s, *w, out); }, &table, out);
}
void ReplayBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                           TensorView y) {
  call(
      "linear", [=, this, s = &step, w = &weight] { inner_->linear(*s, *w, x, y); }, &weight, x, y);
}
void ReplayBackend::linears(const StepView& step, std::span<const LinearOutput> outputs,
                            TensorView x) {
  const std::vector<LinearOutput> kept(outputs.begin(), outputs.end());
  call("linears", [=, this, s = &step] { inner_->linears(*s, kept, x); }, kept, x);
}
void ReplayBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                           TensorView y) {
  call("logits", [=, this, s = &step, w = &head] { inner_->logits(*s, *w, x, y); }, &head, x, y);
}
void ReplayBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  call(
      "gather_logit_rows", [=, this, s = &step] { inner_->gather_logit_rows(*s, x, out); }, x, out);
}
void ReplayBackend::rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                             TensorView out) {
  call(
      "rms_norm", [=, this, s = &step] { inner_->rms_norm(*s, x, weight, eps, out); }, x, weight,
      eps, out);
}
void ReplayBackend::add_rms_norm(const StepView& step, TensorView h, TensorView residual,
                                 bool first, TensorView weight, float eps, TensorView out) {
  call(
      "add_rms_norm",
      [=, this, s = &step] { inner_->add_rms_norm(*s, h, residual, first, weight, eps, out); }, h,
      residual, int{first}, weight, eps, out);
}
void ReplayBackend::layer_norm(const StepView& step, TensorView x, TensorView weight,
                               TensorView bias, float eps) {
  call(
      "layer_norm", [=, this, s = &step] { inner_->layer_norm(*s, x, weight, bias, eps); }, x,
      weight, bias, eps);
}
void ReplayBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                         int offset, int rope_dim, RopeStyle style) {
  call(
      "rope",
      [=, this, s = &step] {
        inner_->rope(*s, x, num_heads, head_stride, offset, rope_dim, style);
      },
      x, num_heads, head_stride, offset, rope_dim, static_cast<int>(style));
}
void ReplayBackend::scale(const StepView& step, TensorView x, float factor) {
  call("scale", [=, this, s = &step] { inner_->scale(*s, x, factor); }, x, factor);
}
void ReplayBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  call("append_latent", [=, this, s = &step] { inner_->append_latent(*s, x, dst); }, x, dst);
}
void ReplayBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  call("append_index_key", [=, this, s = &step] { inner_->append_index_key(*s, x, dst); }, x, dst);
}
void ReplayBackend::select(const StepView& step, const SelectParams& params) {
  call(
      "select", [=, this, s = &step] { inner_->select(*s, params); }, params.queries,
      params.weights, params.keys, params.out, params.dims.top_k);
}
void ReplayBackend::silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) {
  call("silu_mul", [=, this, s = &step] { inner_->silu_mul(*s, gate, up, out); }, gate, up, out);
}

void ReplayBackend::attend(const StepView& step, const AttendParams& params) {
  const bool selected = params.selection != nullptr;
  const Selection selection = selected ? *params.selection : Selection();
  call(
      "attend",
      [=, this, s = &step] {
        AttendParams kept = params;
        kept.selection = selected ? &selection : nullptr;
        inner_->attend(*s, kept);
      },
      params.queries, params.kv_b, params.latents, int{selected}, selection, params.out);
}

void ReplayBackend::route(const StepView& step, const RouteParams& params) {
  call(
      "route", [=, this, s = &step] { inner_->route(*s, params); }, params.spec.top_k,
      params.logits, params.bias, params.forced, params.mailbox.experts, params.mailbox.weights);
}

void ReplayBackend::experts(const StepView& step, const ExpertParams& params) {
  check_closed("routed experts");
  inner_->experts(step, params);
}
void ReplayBackend::combine(const StepView& step, const CombineParams& params) {
  check_closed("a sum of routed experts");
  inner_->combine(step, params);
}

}  // namespace stoker::test
