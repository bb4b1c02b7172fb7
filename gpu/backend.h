// The backend of one GPU: kernels for every operation, all in one stream. Routed experts use the
// defined arithmetic (quant/defined_arithmetic.h); so do dense linears, unless their inputs are
// BF16 and their weights FP8 or BF16: those run on tensor cores, rows of decode and verify by
// kernels/linear_few.cu, rows of prefill by cuBLASLt where the machine has it. Attention splits a
// row's keys by its purpose and its own number of keys.
#pragma once

#include <vector>

#include "core/interface/backend.h"
#include "gpu/cublaslt.h"
#include "gpu/device.h"
#include "gpu/factory.h"
#include "gpu/launch.h"
#include "gpu/step_cache.h"

namespace stoker::gpu {

class CudaBackend final : public Backend {
 public:
  static Result<std::unique_ptr<Backend>> create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string_view name() const override { return "cuda"; }
  DeviceId device() const override { return DeviceId{options_.device + 1}; }
  DType activation_dtype() const override { return options_.activations; }
  DType kv_dtype() const override { return options_.kv_cache; }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<Tensor> allocate_host(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<WeightPtr> adopt(const QuantView& host) override;
  Result<WeightPtr> adopt_embedding(const QuantView& host) override;
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override;
  Result<Tensor> adopt_vector(const TensorView& host) override;
  Status set_rope(std::span<const float> inv_freq) override;

  Status begin_step(const StepView& step) override;
  Event record() override;
  bool done(Event event) override;
  // An event of a backend that is not CUDA is waited for on the host.
  void wait_for(Backend& other, Event event) override;
  Status status() override { return status_; }
  Status finish() override;

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
  // Parts may lie in this device's memory or in host memory, from where they are uploaded first.
  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

 private:
  CudaBackend(const CudaBackendOptions& options, Stream stream, StagingRing staging,
              std::vector<StreamEvent> events, std::unique_ptr<CublasLt> cublaslt);

  // Runs `enqueue` with this device current, unless an earlier error stands; keeps its error.
  template <typename F>
  void run(F&& enqueue);

  // Rows of decode and verify, and of prefill.
  Status multiply_few(const QuantView& weight, const TensorView& x, const TensorView& y);
  Status multiply_many(const QuantView& weight, const TensorView& x, const TensorView& y);
  Status select_rows(const StepView& step, const SelectParams& params);
  Status route_rows(const RouteParams& params);
  Status run_parts(const ExpertParams& params);
  Status flush_tasks(const ExpertParams& params, ExpertHalf half);
  Result<QuantView> resident(const QuantView& view);

  CudaBackendOptions options_;
  Stream stream_;
  StagingRing staging_;
  std::vector<StreamEvent> events_;     // ticket t uses events_[t % size]; a later one covers it
  std::unique_ptr<CublasLt> cublaslt_;  // null for F32, and where the machine has none
  std::uint64_t last_ticket_ = 0;
  Status status_;
  StepCache steps_;
  DeviceBuffer inv_freq_;
  // Scratch, written and read in stream order, so that one of each is enough.
  DeviceBuffer widened_;         // rows of a weight as BF16
  DeviceBuffer partials_;        // sums of parts of a linear's columns
  DeviceBuffer counters_;        // how many blocks have added theirs; zeros between launches
  DeviceBuffer scores_;          // F32 [rows at once, positions]
  DeviceBuffer attend_scratch_;  // of its steps: queries in latent space, sums of splits
  DeviceBuffer routes_;          // experts, weights, forced [T, top_k] each
  DeviceBuffer combine_slots_;   // slots, weights [T, top_k] each
  DeviceBuffer upload_;          // parts of experts that lie in host memory
  std::int64_t upload_used_ = 0;
  std::vector<ExpertTask> tasks_;  // reused
};

}  // namespace stoker::gpu
