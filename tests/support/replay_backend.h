// A backend that takes parts at their word: what is called in a part is kept the first time and
// runs at its end, and from then on what was kept runs instead. What is called instead must be the
// same, or the test ends. Outside parts it is the inner backend, which computes at once.
#pragma once

#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "core/interface/backend.h"

namespace stoker::test {

struct PartCounts {
  int num_kept = 0;  // parts that are kept by now
  int num_first = 0, num_replayed = 0;
  int num_calls_replayed = 0;
};

class ReplayBackend final : public Backend {
 public:
  // `counts` outlives it.
  ReplayBackend(std::unique_ptr<Backend> inner, PartCounts& counts)
      : inner_(std::move(inner)), counts_(counts) {}

  std::string_view name() const override { return "replay"; }
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
  Event record() override;
  bool done(Event event) override;
  void wait_for(Backend& other, Event event) override;
  void begin_part(const StepView& step, int part) override;
  void end_part() override;
  void forget_parts(const StepView& step) override;
  Status status() override { return inner_->status(); }
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
  using Operands = std::vector<std::uint64_t>;  // of a call, its name first
  struct Call {
    Operands operands;
    std::function<void()> run;
  };
  struct Key {
    const StepView* step;
    int num_rows, part;
    auto operator<=>(const Key&) const = default;
  };

  void check_closed(std::string_view what) const;
  template <typename... T>
  void call(const char* name, std::function<void()> run, const T&... operands);

  std::unique_ptr<Backend> inner_;
  PartCounts& counts_;
  std::optional<Key> open_;
  std::vector<Call> calls_;  // of the open part
  std::map<Key, std::vector<Call>> kept_;
};

}  // namespace stoker::test
