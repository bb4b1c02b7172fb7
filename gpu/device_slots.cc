#include "gpu/device_slots.h"

#include <cuda_runtime_api.h>

#include "gpu/error.h"
#include "gpu/native.h"

namespace stoker::gpu {
namespace {

// Copies under way to be told apart. Of more, the older ones are done when later ones are.
constexpr int kNumTickets = 256;

}  // namespace

CudaSlots::CudaSlots(const CudaSlotsOptions& options, DeviceBuffer memory, Stream stream,
                     TicketRing tickets)
    : options_(options),
      memory_(std::move(memory)),
      stream_(std::move(stream)),
      tickets_(std::move(tickets)) {
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory_.data()));
  first_ = memory_.data() + (cuda_slot_aligned(address) - address);
}

Result<std::unique_ptr<DeviceSlots>> CudaSlots::create(const CudaSlotsOptions& wanted) {
  CHECK(wanted.num_slots > 0 && wanted.slot_bytes > 0 && wanted.logical >= 0,
        "{} slots of {} bytes on device {}", wanted.num_slots, wanted.slot_bytes, wanted.logical);
  CudaSlotsOptions options = wanted;
  options.slot_bytes = cuda_slot_aligned(wanted.slot_bytes);
  RETURN_IF_ERROR(use_device(options.device));
  ASSIGN_OR_RETURN(DeviceBuffer memory,
                   DeviceBuffer::create(cuda_slots_bytes(options.num_slots, options.slot_bytes)),
                   "{} slots of {} bytes", options.num_slots, options.slot_bytes);
  ASSIGN_OR_RETURN(Stream stream, Stream::create());
  // Copies are asked after once in a while, by whoever waits for none of them: events will do.
  ASSIGN_OR_RETURN(TicketRing tickets, TicketRing::create(kNumTickets));
  return std::unique_ptr<DeviceSlots>(
      new CudaSlots(options, std::move(memory), std::move(stream), std::move(tickets)));
}

CudaSlots::~CudaSlots() { (void)stream_.synchronize(); }

std::byte* CudaSlots::slot(int index) const {
  CHECK(index >= 0 && index < options_.num_slots, "slot {} of {}", index, options_.num_slots);
  return first_ + index * options_.slot_bytes;
}

UploadTicket CudaSlots::upload(int slot, std::int64_t offset, std::span<const std::byte> src) {
  const auto bytes = static_cast<std::int64_t>(src.size());
  CHECK(offset >= 0 && offset + bytes <= options_.slot_bytes, "[{}, + {}) of a slot of {}", offset,
        bytes, options_.slot_bytes);
  std::byte* const dst = this->slot(slot) + offset;
  const auto enqueue = [&]() -> Status {
    RETURN_IF_ERROR(use_device(options_.device));
    RETURN_IF_ERROR(cuda_status(cudaMemcpyAsync(dst, src.data(), src.size(), cudaMemcpyHostToDevice,
                                                native(stream_)),
                                "uploading to a slot"),
                    "{} bytes", bytes);
    return tickets_.record(stream_);
  };
  if (status_.ok()) status_ = enqueue();
  return tickets_.last();
}

bool CudaSlots::done(UploadTicket ticket) {
  if (!status_.ok()) return true;  // nothing more will happen that anybody may use
  const Result<bool> done = tickets_.done(ticket);
  if (done.ok()) return *done;
  status_ = done.error();
  return true;
}

}  // namespace stoker::gpu
