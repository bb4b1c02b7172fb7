// Slots for experts in the memory of one GPU, and the stream that fills them.
#pragma once

#include <memory>

#include "core/interface/device_slots.h"
#include "gpu/device.h"
#include "gpu/factory.h"
#include "gpu/tickets.h"

namespace stoker::gpu {

class CudaSlots final : public DeviceSlots {
 public:
  // Requires: the GPU exists.
  static Result<std::unique_ptr<DeviceSlots>> create(const CudaSlotsOptions& options);
  ~CudaSlots() override;

  DeviceId device() const override { return DeviceId{options_.logical + 1}; }
  int num_slots() const override { return options_.num_slots; }
  std::int64_t slot_bytes() const override { return options_.slot_bytes; }
  std::byte* slot(int index) const override;
  UploadTicket upload(int slot, std::int64_t offset, std::span<const std::byte> src) override;
  bool done(UploadTicket ticket) override;
  Status status() const override { return status_; }

 private:
  CudaSlots(const CudaSlotsOptions& options, DeviceBuffer memory, Stream stream,
            TicketRing tickets);

  CudaSlotsOptions options_;  // with slot_bytes rounded up
  DeviceBuffer memory_;
  std::byte* first_;  // within memory_, aligned
  Stream stream_;
  TicketRing tickets_;
  Status status_;
};

}  // namespace stoker::gpu
