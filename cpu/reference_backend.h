// The reference backend: plain scalar F32 code, activations and caches always F32. The definition
// that every other backend is tested against; for small models.
#pragma once

#include <memory>
#include <vector>

#include "core/interface/backend.h"

namespace stoker {

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  DeviceId device() const override { return kHost; }
  DType activation_dtype() const override { return DType::kF32; }
  KvFormat kv_format() const override { return KvFormat::kF32; }
  bool computes_at_once() const override { return true; }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<WeightPtr> adopt(const QuantView& host) override;
  Result<WeightPtr> adopt_embedding(const QuantView& host) override { return adopt(host); }
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override;
  Result<Tensor> adopt_vector(const TensorView& host) override;
  Status set_rope(std::span<const float> inv_freq) override;

  Status begin_step(const StepView& /*step*/) override { return {}; }
  Event record() override { return {}; }
  bool done(Event /*event*/) override { return true; }
  void wait_for(Backend& /*other*/, Event /*event*/) override {}
  Status status() override { return {}; }
  Status finish() override { return {}; }

  void copy_in(const TensorView& dst, const void* src) override;
  void copy_out(void* dst, const TensorView& src) override;
  void copy(const TensorView& dst, const TensorView& src) override;

  void embed(const StepView& step, const BackendWeight& table, TensorView out) override;
  void linear(const StepView& step, const BackendWeight& weight, TensorView x,
              TensorView y) override;
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
  std::vector<float> inv_freq_;
};

}  // namespace stoker
