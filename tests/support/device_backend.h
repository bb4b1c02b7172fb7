// A device without hardware: a backend whose memory counts as a device's. What it is given must lie
// there, or the test ends; it computes at once, with the inner backend of the host. And slots of
// such a device, whose copies come late.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/interface/device_slots.h"
#include "core/runtime/expert_costs.h"
#include "tests/support/forwarding_backend.h"

namespace stoker::test {

class DeviceBackend final : public ForwardingBackend {
 public:
  DeviceBackend(std::unique_ptr<Backend> host, DeviceId device)
      : ForwardingBackend(std::move(host)), device_(device) {}

  std::string_view name() const override { return "device"; }
  DeviceId device() const override { return device_; }

  Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) override;
  Result<Tensor> adopt_vector(const TensorView& host) override;
  void wait_for(Backend& other, Event event) override;
  void copy(const TensorView& dst, const TensorView& src) override;
  // Parts may lie anywhere.
  void experts(const StepView& step, const ExpertParams& params) override;

  // What take_expert_timing() returns next.
  void measure(const ExpertTiming& timing) { timing_ = timing; }
  std::optional<ExpertTiming> take_expert_timing() override {
    return std::exchange(timing_, std::nullopt);
  }

  int num_experts_parts() const { return num_parts_; }            // computed so far
  int num_uploaded_parts() const { return num_uploaded_parts_; }  // of them, from host memory
  int num_peer_parts() const { return num_peer_parts_; }          // and from another device's

 private:
  TensorView inner_view(TensorView view) const override;

  DeviceId device_;
  std::optional<ExpertTiming> timing_;
  int num_parts_ = 0, num_uploaded_parts_ = 0, num_peer_parts_ = 0;
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
