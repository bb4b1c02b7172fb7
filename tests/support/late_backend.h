// A backend whose work happens late: operations are queued and run only while somebody polls an
// event, a few at a time. What core reads before the event is done is poisoned. Its results are the
// inner backend's.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "core/interface/backend.h"

namespace stoker::test {

class LateBackend final : public Backend {
 public:
  // Runs at most `per_poll` queued operations per done().
  LateBackend(std::unique_ptr<Backend> inner, int per_poll)
      : inner_(std::move(inner)), per_poll_(per_poll) {}

  // Makes the operation numbered `index` (counted from now) fail.
  void fail_at(int index) { fail_in_ = index; }
  int num_polls() const { return num_polls_; }

  std::string_view name() const override { return "late"; }
  DeviceId device() const override { return inner_->device(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  KvFormat kv_format() const override { return inner_->kv_format(); }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override {
    return inner_->allocate(dtype, rows, cols);
  }
  Result<Tensor> allocate_host(DType dtype, std::int64_t rows, std::int64_t cols) override {
    return inner_->allocate_host(dtype, rows, cols);
  }
  Result<WeightPtr> adopt(const QuantView& host) override { return inner_->adopt(host); }
  Result<WeightPtr> adopt_embedding(const QuantView& host) override {
    return inner_->adopt_embedding(host);
  }
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override {
    return inner_->adopt_kv_b(host, dims);
  }
  Result<Tensor> adopt_vector(const TensorView& host) override {
    return inner_->adopt_vector(host);
  }
  Status set_rope(std::span<const float> inv_freq) override { return inner_->set_rope(inv_freq); }

  Status begin_step(const StepView& step) override;
  Event record() override { return {next_ticket_}; }
  bool done(Event event) override;
  void wait_for(Backend& other, Event event) override;
  Status status() override;
  Status finish() override;

  void copy_in(const TensorView& dst, const void* src) override;
  void copy_out(void* dst, const TensorView& src) override;
  void copy(const TensorView& dst, const TensorView& src) override;

  void embed(const StepView& step, const BackendWeight& table, TensorView out) override;
  void linear(const StepView& step, const BackendWeight& weight, TensorView x,
              TensorView y) override;
  void linears(const StepView& step, std::span<const LinearOutput> outputs, TensorView x) override;
  void logits(const StepView& step, const BackendWeight& head, TensorView x, TensorView y) override;
  void gather_logit_rows(const StepView& step, TensorView x, TensorView out) override;
  void rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                TensorView out) override;
  void add_rms_norm(const StepView& step, TensorView h, TensorView residual, bool first,
                    TensorView weight, float eps, TensorView out) override;
  void layer_norm(const StepView& step, TensorView x, TensorView weight, TensorView bias,
                  float eps) override;
  void rope(const StepView& step, TensorView x, int num_heads, int head_stride, int offset,
            int rope_dim, RopeStyle style) override;
  void scale(const StepView& step, TensorView x, float factor) override;
  void append_latent(const StepView& step, TensorView x, KvLayer dst) override;
  void append_index_key(const StepView& step, TensorView x, KvLayer dst) override;
  void select(const StepView& step, const SelectParams& params) override;
  void attend(const StepView& step, const AttendParams& params) override;
  void silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) override;
  void route(const StepView& step, const RouteParams& params) override;
  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

 private:
  void enqueue(std::function<void()> operation);
  void run_next();

  std::unique_ptr<Backend> inner_;
  int per_poll_;
  int fail_in_ = -1;
  int num_polls_ = 0;
  std::deque<std::function<void()>> queue_;
  std::uint64_t next_ticket_ = 0;  // operations enqueued so far
  std::uint64_t num_run_ = 0;
  Status failed_;
};

}  // namespace stoker::test
