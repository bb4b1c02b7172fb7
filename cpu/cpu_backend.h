// CpuBackend: computes at once, so every event is done when it is recorded.
//
// Decode rows run the defined arithmetic (quant/defined_arithmetic.h) on tile16 weights, prefill
// rows go through oneDNN; attention and the indexer treat both alike. Results depend neither on the
// number of threads nor on the other rows of a step. The Hadamard transform and FP8 rounding of
// indexer keys and queries (spec 3.6) belong to an FP8 cache; others score cached keys as they are.
#pragma once

#include <memory>
#include <vector>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/attention.h"
#include "cpu/factory.h"
#include "cpu/kernels.h"
#include "cpu/products.h"

namespace stoker::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options);

  std::string_view name() const override { return "cpu"; }
  DeviceId device() const override { return kHost; }
  DType activation_dtype() const override { return activations_; }
  KvFormat kv_format() const override { return kv_format_; }
  bool computes_at_once() const override { return true; }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<WeightPtr> adopt(const QuantView& host) override;
  Result<WeightPtr> adopt_embedding(const QuantView& host) override;
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override;
  Result<Tensor> adopt_vector(const TensorView& host) override;
  Status set_rope(std::span<const float> inv_freq) override;

  Status begin_step(const StepView& step) override;
  Event record() override { return {}; }
  bool done(Event /*event*/) override { return true; }
  void wait_for(Backend& other, Event event) override;
  Status status() override { return status_; }
  Status finish() override { return status_; }

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
  void gated_ffn(const StepView& step, const BackendWeight& gate, const BackendWeight& up,
                 const BackendWeight& down, TensorView x, TensorView gate_out, TensorView up_out,
                 TensorView out) override;
  void route(const StepView& step, const RouteParams& params) override;
  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

 private:
  // Inputs of one expert in an expert_half(): its rows among the staged ones and its output slots.
  struct StagedUse {
    const std::int32_t* rows = nullptr;  // decode rows first; null: not staged yet
    const std::int32_t* slots = nullptr;
  };

  // Calls fn(row) for every row; on the Team where the rows hold enough work.
  void for_rows(std::int64_t num_rows, std::int64_t row_cost, FunctionRef<void(std::int64_t)> fn);
  // `rotated`: as indexer keys of an FP8 cache are.
  void append(const StepView& step, const TensorView& x, const KvLayer& dst,
              std::span<const std::int32_t> SequencePages::* stream, bool rotated);
  // out = x . w^T, or with `up` silu(gate) * up, all rows by their purpose.
  void multiply(const StepView& step, const TileMatrix& w, const TileMatrix& up,
                const TensorView& x, const TensorView& out);
  // One half of experts(); the parts whose weights prefill computes in `panel_dtype`.
  void expert_half(const ExpertParams& params, ExpertHalf half, DType panel_dtype);
  StagedUse stage_use(const ExpertParams& params, const ExpertUse& use, ExpertHalf half);
  // Lets the workers check landed blocks; fills part_usable_.
  void pass_guards(std::span<const ExpertPart> parts);
  bool check_part(const ExpertPart& part);
  void update_angles(const StepView& step);

  Team& team_;
  const Kernels& kernels_;
  DType activations_;
  KvFormat kv_format_;
  Products products_;
  Attention attention_;
  Status status_;

  std::vector<float> inv_freq_;
  std::vector<std::int32_t> angle_positions_;  // positions that cos_ and sin_ are of
  std::vector<float> cos_, sin_;               // [T, inv_freq]
  std::vector<StagedUse> staged_;
  std::vector<std::uint8_t> part_usable_;  // of the parts of an experts() call
  std::vector<int> guarded_parts_;
  std::vector<Scratch> row_scratch_;  // per worker
  std::vector<float> kv_row_;         // a row on its way into an FP8 cache
};

}  // namespace stoker::cpu
