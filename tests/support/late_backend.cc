#include "tests/support/late_backend.h"

#include <algorithm>
#include <limits>
#include <thread>

namespace stoker::test {

void LateBackend::enqueue(std::function<void()> operation) {
  ++next_ticket_;
  queue_.push_back(std::move(operation));
}

void LateBackend::run_next() {
  const std::function<void()> operation = std::move(queue_.front());
  queue_.pop_front();
  ++num_run_;
  if (fail_in_ == 0) failed_ = Error(ErrorCode::kIo, "the device was lost");
  if (fail_in_ >= 0) --fail_in_;
  if (failed_.ok()) operation();
}

bool LateBackend::done(Event event) {
  ++num_polls_;
  for (int i = 0; i < per_poll_ && num_run_ < event.ticket; ++i) run_next();
  return num_run_ >= event.ticket;
}

Status LateBackend::begin_step(const StepView& step) {
  failed_ = {};
  const StepView* at = &step;
  enqueue([this, at] { failed_ = inner_->begin_step(*at); });
  return {};
}

void LateBackend::wait_for(Backend& other, Event event) {
  if (&other == this) return;
  enqueue([&other, event] {
    while (!other.done(event)) std::this_thread::yield();
  });
}

Status LateBackend::status() { return failed_; }

Status LateBackend::finish() {
  while (!queue_.empty()) run_next();
  return failed_;
}

void LateBackend::copy_in(const TensorView& dst, const void* src) {
  enqueue([=, this] { inner_->copy_in(dst, src); });
}
void LateBackend::copy_out(void* dst, const TensorView& src) {
  enqueue([=, this] { inner_->copy_out(dst, src); });
}
void LateBackend::copy(const TensorView& dst, const TensorView& src) {
  enqueue([=, this] { inner_->copy(dst, src); });
}
void LateBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  enqueue([=, this, s = &step, w = &table] { inner_->embed(*s, *w, out); });
}
void LateBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                         TensorView y) {
  enqueue([=, this, s = &step, w = &weight] { inner_->linear(*s, *w, x, y); });
}
void LateBackend::linears(const StepView& step, std::span<const LinearOutput> outputs,
                          TensorView x) {
  const std::vector<LinearOutput> kept(outputs.begin(), outputs.end());
  enqueue([=, this, s = &step] { inner_->linears(*s, kept, x); });
}
void LateBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                         TensorView y) {
  enqueue([=, this, s = &step, w = &head] { inner_->logits(*s, *w, x, y); });
}
void LateBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  enqueue([=, this, s = &step] { inner_->gather_logit_rows(*s, x, out); });
}
void LateBackend::rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                           TensorView out) {
  enqueue([=, this, s = &step] { inner_->rms_norm(*s, x, weight, eps, out); });
}
void LateBackend::add_rms_norm(const StepView& step, TensorView h, TensorView residual, bool first,
                               TensorView weight, float eps, TensorView out) {
  enqueue([=, this, s = &step] { inner_->add_rms_norm(*s, h, residual, first, weight, eps, out); });
}
void LateBackend::layer_norm(const StepView& step, TensorView x, TensorView weight, TensorView bias,
                             float eps) {
  enqueue([=, this, s = &step] { inner_->layer_norm(*s, x, weight, bias, eps); });
}
void LateBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                       int offset, int rope_dim, RopeStyle style) {
  enqueue([=, this, s = &step] {
    inner_->rope(*s, x, num_heads, head_stride, offset, rope_dim, style);
  });
}
void LateBackend::scale(const StepView& step, TensorView x, float factor) {
  enqueue([=, this, s = &step] { inner_->scale(*s, x, factor); });
}
void LateBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  enqueue([=, this, s = &step] { inner_->append_latent(*s, x, dst); });
}
void LateBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  enqueue([=, this, s = &step] { inner_->append_index_key(*s, x, dst); });
}
void LateBackend::select(const StepView& step, const SelectParams& params) {
  enqueue([=, this, s = &step] { inner_->select(*s, params); });
}
void LateBackend::silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) {
  enqueue([=, this, s = &step] { inner_->silu_mul(*s, gate, up, out); });
}

void LateBackend::attend(const StepView& step, const AttendParams& params) {
  const bool selected = params.selection != nullptr;
  const Selection selection = selected ? *params.selection : Selection();
  enqueue([=, this, s = &step] {
    AttendParams late = params;
    late.selection = selected ? &selection : nullptr;
    inner_->attend(*s, late);
  });
}

void LateBackend::route(const StepView& step, const RouteParams& params) {
  // Whoever reads the mailbox before the event meets values that no router gives.
  std::fill(params.mailbox.experts.begin(), params.mailbox.experts.end(), -1);
  std::fill(params.mailbox.weights.begin(), params.mailbox.weights.end(),
            std::numeric_limits<float>::quiet_NaN());
  enqueue([=, this, s = &step] { inner_->route(*s, params); });  // what is forced is read late
}

void LateBackend::experts(const StepView& step, const ExpertParams& params) {
  const std::vector<ExpertUse> uses(params.uses.begin(), params.uses.end());
  const std::vector<ExpertPart> parts(params.parts.begin(), params.parts.end());
  std::vector<std::vector<std::int32_t>> rows;
  for (const ExpertUse& use : uses) rows.emplace_back(use.rows.begin(), use.rows.end());
  enqueue([=, this, s = &step] {
    std::vector<ExpertUse> late_uses = uses;
    for (std::size_t i = 0; i < late_uses.size(); ++i) late_uses[i].rows = rows[i];
    ExpertParams late = params;
    late.uses = late_uses;
    late.parts = parts;
    inner_->experts(*s, late);
  });
}

void LateBackend::combine(const StepView& step, const CombineParams& params) {
  const std::vector<std::int32_t> slots(params.slots.begin(), params.slots.end());
  const std::vector<float> weights(params.weights.begin(), params.weights.end());
  enqueue([=, this, s = &step] {
    CombineParams late = params;
    late.slots = slots;
    late.weights = weights;
    inner_->combine(*s, late);
  });
}

}  // namespace stoker::test
