// The backend of one GPU: kernels for every operation, all in one stream, and a second one for the
// parts of experts that have to be brought here. Routed experts use the defined arithmetic
// (quant/defined_arithmetic.h) for rows of decode and verify, and tensor cores for rows of prefill
// with BF16 inputs (or for both: CudaBackendOptions::fast_experts). Dense linears use the defined
// arithmetic, unless their inputs are BF16 and their weights FP8 or BF16: those run on tensor
// cores, rows of decode and verify by kernels/linear_few.cu, rows of prefill by cuBLASLt where the
// machine has it. Attention splits a row's keys by its purpose and its own number of keys.
#pragma once

#include <optional>
#include <vector>

#include "core/interface/backend.h"
#include "gpu/busy_meter.h"
#include "gpu/cublaslt.h"
#include "gpu/device.h"
#include "gpu/expert_uploads.h"
#include "gpu/factory.h"
#include "gpu/launch.h"
#include "gpu/part_graphs.h"
#include "gpu/prefill_experts.h"
#include "gpu/scratch.h"
#include "gpu/step_cache.h"
#include "gpu/stream_timer.h"
#include "gpu/tickets.h"

namespace stoker::gpu {

class CudaBackend final : public Backend {
 public:
  static Result<std::unique_ptr<Backend>> create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string_view name() const override { return "cuda"; }
  DeviceId device() const override { return DeviceId{options_.logical + 1}; }
  DType activation_dtype() const override { return options_.activations; }
  KvFormat kv_format() const override { return options_.kv_format; }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<Tensor> allocate_host(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<WeightPtr> adopt(const QuantView& host) override;
  // Stays in host memory, pinned; rows are read from there.
  Result<WeightPtr> adopt_embedding(const QuantView& host) override;
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override;
  Result<Tensor> adopt_vector(const TensorView& host) override;
  Status set_rope(std::span<const float> inv_freq) override;

  Status begin_step(const StepView& step) override;
  Event record() override;
  bool done(Event event) override;
  // Of another backend on CUDA this waits for what that was given until now, by the device; an
  // event of any other backend is waited for on the host.
  void wait_for(Backend& other, Event event) override;
  // Parts become CUDA graphs: part_graphs.h.
  void begin_part(const StepView& step, int part) override;
  void end_part() override;
  void forget_parts(const StepView& step) override { graphs_.forget(step); }
  Status status() override { return status_; }
  Status finish() override;
  std::optional<ExpertTiming> take_expert_timing() override;
  std::int64_t busy_us() const override { return meter_ ? meter_->busy_us() : 0; }

  void copy_in(const TensorView& dst, const void* src) override;
  void copy_out(void* dst, const TensorView& src) override;
  // Also from the memory of another GPU: directly where enable_peer_access() could, else through
  // host memory.
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
  void prepare_attention(const StepView& step, const AttentionInputParams& params) override;
  void select(const StepView& step, const SelectParams& params) override;
  void attend(const StepView& step, const AttendParams& params) override;
  void silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) override;
  void route(const StepView& step, const RouteParams& params) override;
  // Parts may lie in this device's memory or elsewhere, from where they are uploaded first.
  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

  CudaScratch scratch_held() const;
  int graphs_held() const { return graphs_.num_graphs(); }

 private:
  CudaBackend(const CudaBackendOptions& options, Stream stream, StagingRing staging,
              TicketCounter tickets, ExpertUploads uploads, SampleTimer expert_timer,
              std::unique_ptr<CublasLt> cublaslt);
  Status reserve(const CudaScratch& scratch);

  // Runs `enqueue` with this device current, unless an earlier error stands or a graph holds what
  // it would do; keeps its error.
  template <typename F>
  void run(F&& enqueue);

  // set_rope()'s frequencies for that many dimensions.
  const float* inv_freq(int rope_dim) const;

  // Positions that launches for the rows at `positions` are made for: those that the row sees which
  // sees the most, or a few more in steps that may have parts. `boundary`: as visible_range().
  int most_visible(const StepView& step, std::span<const std::int32_t> positions, int boundary);

  // At most kMostLinearsJoined weights: all rows, those of decode and verify, those of prefill.
  Status multiply(const StepView& step, std::span<const LinearFewOutput> outputs,
                  const TensorView& x);
  Status multiply_few(std::span<const LinearFewOutput> outputs, const TensorView& x);
  Status multiply_many(const LinearFewOutput& output, const TensorView& x);
  Status select_rows(const StepView& step, const SelectParams& params);
  Status route_rows(const RouteParams& params);
  Status run_parts(const ExpertParams& params);
  Status add_part(const ExpertParams& params, const ExpertPart& part);
  Status flush_tasks(const ExpertParams& params, ExpertHalf half);
  void clear_tasks();
  Status begin_timing(const ExpertParams& params);

  CudaBackendOptions options_;
  Stream stream_;
  StagingRing staging_;
  TicketCounter tickets_;
  std::optional<BusyMeter> meter_;
  ExpertUploads uploads_;
  SampleTimer expert_timer_;
  ExpertTiming timed_experts_;          // of what it times, without times
  std::unique_ptr<CublasLt> cublaslt_;  // null for F32, and where the machine has none
  Status status_;
  StepCache steps_;
  DeviceBuffer inv_freq_;
  ScratchBuffers scratch_;
  PartGraphs graphs_;
  // Between this operation and route() nothing but kernels that write host memory was enqueued:
  // kernels of it may start when all before route() is complete (siblings,
  // kernels/common/overlap.cuh).
  bool after_route_ = false;
  bool route_was_last_ = false;           // of the operations so far
  std::vector<ExpertTask> tasks_;         // reused, as are
  std::vector<ExpertFewTask> few_tasks_;  // these
  PrefillExperts prefill_experts_;
};

}  // namespace stoker::gpu
