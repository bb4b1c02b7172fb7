// GPUs without hardware: devices of tests/support/device_backend.h over the CPU backend, as many as
// a test asks for.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/team.h"
#include "cpu/factory.h"
#include "tests/support/device_backend.h"
#include "tools/gpus.h"

namespace stoker::test {

class FakeGpus final : public tools::Gpus {
 public:
  explicit FakeGpus(std::vector<std::int64_t> free_bytes) : free_bytes_(std::move(free_bytes)) {}

  std::vector<GpuInfo> list() const override {
    std::vector<GpuInfo> list;
    for (std::size_t i = 0; i < free_bytes_.size(); ++i) {
      GpuInfo& info = list.emplace_back();
      info.name = "pretended";
      info.total_bytes = free_bytes_[i];
      info.compute_major = old_.count(static_cast<int>(i)) > 0 ? 7 : 9;
    }
    return list;
  }
  Result<std::int64_t> open(int gpu) const override {
    opened_.push_back(gpu);
    if (broken_.count(gpu) > 0) return make_error(ErrorCode::kIo, "GPU {} is broken", gpu);
    return free_bytes_[static_cast<std::size_t>(gpu)];
  }
  std::string support() const override { return "pretended GPUs"; }
  std::int64_t scratch_bytes(const ModelConfig& /*config*/,
                             const tools::GpuBackendNeed& /*need*/) const override {
    return std::int64_t{1} << 20;
  }
  Result<std::unique_ptr<Backend>> make_backend(const ModelConfig& /*config*/,
                                                const tools::GpuBackendNeed& need) const override {
    options_[need.options.logical] = need.options;
    CpuBackendOptions options;
    options.activations = need.options.activations;
    options.kv_format = need.options.kv_format;
    options.isa = best_isa();
    options.team = &team_;
    ASSIGN_OR_RETURN(std::unique_ptr<Backend> host, make_cpu_backend(options));
    auto device = std::make_unique<DeviceBackend>(std::move(host), id(need.options.logical));
    backends_[need.options.logical] = device.get();
    return std::unique_ptr<Backend>(std::move(device));
  }
  Result<std::unique_ptr<DeviceSlots>> make_slots(const CudaSlotsOptions& options) const override {
    num_slots_[options.logical] = options.num_slots;
    return std::unique_ptr<DeviceSlots>(std::make_unique<MemoryDeviceSlots>(
        id(options.logical), options.num_slots, options.slot_bytes));
  }
  Result<std::shared_ptr<void>> pin(std::span<std::byte> memory, int gpu) const override {
    pinned_by_ = gpu;
    if (!pins_) return make_error(ErrorCode::kResource, "no memory may be pinned");
    pinned_bytes_ += static_cast<std::int64_t>(memory.size());
    return std::shared_ptr<void>(memory.data(), [this, size = memory.size()](void*) {
      pinned_bytes_ -= static_cast<std::int64_t>(size);
    });
  }
  Status connect(std::span<const int> gpus) const override {
    connected_.assign(gpus.begin(), gpus.end());
    return {};
  }

  void refuse_pins() { pins_ = false; }
  void make_old(int gpu) { old_.insert(gpu); }        // as the list says
  void make_broken(int gpu) { broken_.insert(gpu); }  // as opening it says
  const std::vector<int>& opened() const { return opened_; }
  int pinned_by() const { return pinned_by_; }
  const DeviceBackend& backend(int logical) const { return *backends_.at(logical); }
  const std::map<int, int>& num_slots() const { return num_slots_; }  // by logical device
  const std::map<int, CudaBackendOptions>& options() const { return options_; }  // likewise
  std::int64_t pinned_bytes() const { return pinned_bytes_; }
  const std::vector<int>& connected() const { return connected_; }

 private:
  static DeviceId id(int logical) { return DeviceId{logical + 1}; }

  std::vector<std::int64_t> free_bytes_;
  std::set<int> old_, broken_;
  bool pins_ = true;
  mutable std::vector<int> opened_;
  mutable std::atomic<int> pinned_by_{-1};
  mutable Team team_{1};
  mutable std::map<int, const DeviceBackend*> backends_;
  mutable std::map<int, CudaBackendOptions> options_;
  mutable std::map<int, int> num_slots_;
  mutable std::atomic<std::int64_t> pinned_bytes_{0};
  mutable std::vector<int> connected_;
};

}  // namespace stoker::test
