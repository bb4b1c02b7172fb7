// DeviceSlots: memory of a device cut into slots for experts, and the copies that fill them.
//
// A slot holds an expert in block form, laid out as in RAM. Whoever owns the slots decides who sits
// where; this only moves bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/error.h"
#include "core/tensor/tensor.h"

namespace stoker {

// Names a copy; later ones have higher numbers. 0 names none.
using UploadTicket = std::uint64_t;

// Driver thread. Nothing is allocated and nothing blocks after construction; destroying it waits
// for copies under way.
class DeviceSlots {
 public:
  virtual ~DeviceSlots() = default;

  virtual DeviceId device() const = 0;
  virtual int num_slots() const = 0;
  virtual std::int64_t slot_bytes() const = 0;
  // Address on the device, aligned to 4 KiB. Not to be dereferenced on the host.
  virtual std::byte* slot(int index) const = 0;

  // Copies host bytes to byte `offset` of a slot, after all earlier uploads and beside whatever the
  // device computes. `src` stays valid and unchanged until the copy is done; the slot is in
  // nobody's use meanwhile.
  virtual UploadTicket upload(int slot, std::int64_t offset, std::span<const std::byte> src) = 0;
  // The copy and all before it have come to an end: work enqueued from now on sees the bytes,
  // unless status() is an error.
  virtual bool done(UploadTicket ticket) = 0;
  // First error of a copy. It stays.
  virtual Status status() const = 0;
};

}  // namespace stoker
