// A backend that hands what it is asked to an inner one, for backends that differ from theirs in a
// few things. Operations and copies go through call(), the tensors in them through inner_view().
//
// Fused operations stay composed of single ones, so that call() sees each. What a backend may leave
// out is left out: it does not say that it computes at once, has no parts and measures nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "core/interface/backend.h"

namespace stoker::test {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

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

  Status begin_step(const StepView& step) override { return inner_->begin_step(step); }
  Event record() override { return inner_->record(); }
  bool done(Event event) override { return inner_->done(event); }
  void wait_for(Backend& other, Event event) override { inner_->wait_for(other, event); }
  Status status() override { return inner_->status(); }
  Status finish() override { return inner_->finish(); }

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

 protected:
  // An operation or copy with its arguments. It owns what the backend's contract lets a caller
  // change after the call, so it may run later, and again.
  struct Call {
    std::string_view name;
    std::vector<std::uint64_t> operands;  // addresses, shapes and numbers; same call, same ones
    std::function<void()> run;            // on the inner backend
  };
  virtual void call(Call&& made) { made.run(); }
  // What the inner backend is given for a tensor.
  virtual TensorView inner_view(TensorView view) const { return view; }

  Backend& inner() { return *inner_; }

 private:
  class Arguments;
  template <typename... Params, typename... Args>
  void forward(std::string_view name, void (Backend::*operation)(Params...), const Args&... args);

  std::unique_ptr<Backend> inner_;
};

}  // namespace stoker::test
