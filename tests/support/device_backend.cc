#include "tests/support/device_backend.h"

#include <cstring>
#include <new>
#include <thread>

namespace stoker::test {
namespace {

constexpr std::align_val_t kSlotAlign{4096};

// The same memory under another device's name.
Tensor renamed(Tensor tensor, DeviceId device) {
  TensorView view = tensor.view();
  view.device = device;
  auto owner = std::make_shared<Tensor>(std::move(tensor));
  return Tensor(view, [owner](void*) {});
}

}  // namespace

TensorView DeviceBackend::inner_view(TensorView view) const {
  if (view.empty()) return view;
  CHECK(view.device == device_, "memory of device {} on device {}", view.device.index,
        device_.index);
  view.device = kHost;
  return view;
}

Result<Tensor> DeviceBackend::allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
  ASSIGN_OR_RETURN(Tensor tensor, ForwardingBackend::allocate(dtype, rows, cols));
  return renamed(std::move(tensor), device_);
}

Result<Tensor> DeviceBackend::adopt_vector(const TensorView& host) {
  ASSIGN_OR_RETURN(Tensor tensor, ForwardingBackend::adopt_vector(host));
  return renamed(std::move(tensor), device_);
}

void DeviceBackend::wait_for(Backend& other, Event event) {
  while (!other.done(event)) std::this_thread::yield();
}

void DeviceBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(src.device != kHost, "copy() from the host to device {}", device_.index);
  TensorView from = src;  // of any device
  from.device = kHost;
  inner().copy(inner_view(dst), from);
}

void DeviceBackend::experts(const StepView& step, const ExpertParams& params) {
  std::vector<ExpertPart> parts;
  for (const ExpertPart& part : params.parts) {
    for (int i = 0; i < part.num_blocks; ++i) parts.push_back(part.block_at(i));
  }
  for (ExpertPart& part : parts) {
    CHECK(part.site == device_, "a part for device {} on device {}", part.site.index,
          device_.index);
    ++num_parts_;
    num_uploaded_parts_ += part.device() == kHost ? 1 : 0;
    num_peer_parts_ += part.device() != kHost && part.device() != device_ ? 1 : 0;
    for (QuantView* const matrix : {&part.gate, &part.up, &part.down}) matrix->device = kHost;
  }
  ForwardingBackend::experts(step, {params.x, params.hidden, params.out, params.uses, parts});
}

ExpertCosts some_costs(int num_devices) {
  const std::vector<DeviceCosts> devices(
      static_cast<std::size_t>(num_devices),
      {.compute = {.expert_us = 15, .row_us = 1}, .upload_us_per_byte = 0.02});
  return ExpertCosts({.expert_us = 260, .row_us = 10}, devices);
}

void MemoryDeviceSlots::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, kSlotAlign);
}

MemoryDeviceSlots::MemoryDeviceSlots(DeviceId device, int num_slots, std::int64_t slot_bytes,
                                     int polls_per_copy)
    : device_(device),
      num_slots_(num_slots),
      slot_bytes_(slot_bytes),
      polls_per_copy_(polls_per_copy),
      memory_(new(kSlotAlign) std::byte[static_cast<std::size_t>(num_slots * slot_bytes)]) {}

MemoryDeviceSlots::~MemoryDeviceSlots() {
  while (completed_ < last_) complete_next();
}

UploadTicket MemoryDeviceSlots::upload(int slot, std::int64_t offset,
                                       std::span<const std::byte> src) {
  CHECK(offset >= 0 && offset + static_cast<std::int64_t>(src.size()) <= slot_bytes_,
        "bytes [{}, +{}) of a slot of {}", offset, src.size(), slot_bytes_);
  std::byte* const dst = this->slot(slot) + offset;
  std::memset(dst, 0xA5, src.size());  // whoever reads it too early computes nonsense
  copies_.push_back({dst, src});
  return ++last_;
}

void MemoryDeviceSlots::complete_next() {
  const Copy copy = copies_.front();
  copies_.pop_front();
  ++completed_;
  if (fails_ && status_.ok()) status_ = Error(ErrorCode::kIo, "the device was lost");
  if (status_.ok()) std::memcpy(copy.dst, copy.src.data(), copy.src.size());
}

bool MemoryDeviceSlots::done(UploadTicket ticket) {
  if (completed_ < ticket && ++num_polls_ % polls_per_copy_ == 0) complete_next();
  return completed_ >= ticket;
}

}  // namespace stoker::test
