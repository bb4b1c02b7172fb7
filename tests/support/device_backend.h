// A device without hardware: a backend whose memory counts as a device's. What it is given must lie
// there, or the test ends; it computes at once, with the inner backend of the host. And slots of
// such a device, whose copies come late.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/interface/backend.h"
#include "core/interface/device_slots.h"
#include "core/runtime/expert_costs.h"

namespace stoker::test {

class DeviceBackend final : public Backend {
 public:
  DeviceBackend(std::unique_ptr<Backend> host, DeviceId device)
      : inner_(std::move(host)), device_(device) {}

  std::string_view name() const override { return "device"; }
  DeviceId device() const override { return device_; }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  KvFormat kv_format() const override { return inner_->kv_format(); }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<WeightPtr> adopt(const QuantView& host) override { return inner_->adopt(host); }
  Result<WeightPtr> adopt_embedding(const QuantView& host) override {
    return inner_->adopt_embedding(host);
  }
  Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) override {
    return inner_->adopt_kv_b(host, dims);
  }
  Result<Tensor> adopt_vector(const TensorView& host) override;
  Status set_rope(std::span<const float> inv_freq) override { return inner_->set_rope(inv_freq); }

  Status begin_step(const StepView& step) override { return inner_->begin_step(step); }
  Event record() override { return {}; }
  bool done(Event /*event*/) override { return true; }
  void wait_for(Backend& other, Event event) override;
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
  // Parts may lie here or on the host.
  void experts(const StepView& step, const ExpertParams& params) override;
  void combine(const StepView& step, const CombineParams& params) override;

  // What take_expert_timing() returns next.
  void measure(const ExpertTiming& timing) { timing_ = timing; }
  std::optional<ExpertTiming> take_expert_timing() override {
    return std::exchange(timing_, std::nullopt);
  }

  int num_experts_parts() const { return num_parts_; }            // computed so far
  int num_uploaded_parts() const { return num_uploaded_parts_; }  // of them, from host memory

 private:
  // The inner backend's view of memory of this device.
  TensorView here(TensorView view) const;
  QuantView here(QuantView view);
  KvLayer here(const KvLayer& layer) const { return {here(layer.rows), layer.row}; }
  Selection here(const Selection& s) const { return {here(s.positions), here(s.counts)}; }

  std::unique_ptr<Backend> inner_;
  DeviceId device_;
  std::vector<ExpertPart> parts_;
  std::optional<ExpertTiming> timing_;
  int num_parts_ = 0, num_uploaded_parts_ = 0;
};

// What experts might cost on a machine with GPUs: far less on one, with a copy dearer than the
// host.
ExpertCosts some_costs(int num_devices);

class MemoryDeviceSlots final : public DeviceSlots {
 public:
  // done() completes at most one copy for every `polls_per_copy` calls.
  MemoryDeviceSlots(DeviceId device, int num_slots, std::int64_t slot_bytes,
                    int polls_per_copy = 1);
  // Copies that nobody waited for happen now: what they read must still be there.
  ~MemoryDeviceSlots() override;

  DeviceId device() const override { return device_; }
  int num_slots() const override { return num_slots_; }
  std::int64_t slot_bytes() const override { return slot_bytes_; }
  std::byte* slot(int index) const override { return memory_.get() + index * slot_bytes_; }
  UploadTicket upload(int slot, std::int64_t offset, std::span<const std::byte> src) override;
  bool done(UploadTicket ticket) override;
  Status status() const override { return status_; }

  // Copies fail from now on.
  void fail() { fails_ = true; }

 private:
  struct Copy {
    std::byte* dst;
    std::span<const std::byte> src;
  };
  struct Free {
    void operator()(std::byte* memory) const;
  };
  void complete_next();

  DeviceId device_;
  int num_slots_;
  std::int64_t slot_bytes_;
  int polls_per_copy_;
  std::unique_ptr<std::byte, Free> memory_;
  std::deque<Copy> copies_;
  UploadTicket last_ = 0, completed_ = 0;
  int num_polls_ = 0;
  bool fails_ = false;
  Status status_;
};

}  // namespace stoker::test
