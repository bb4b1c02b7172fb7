// ExpertCosts: what the scheduler believes that computing and copying an expert takes. Begins with
// values measured or guessed before, and follows what is measured while running.
//
// Knows no clock: whoever runs experts says how long they took. Allocates nothing once built. Not
// thread-safe: the driver thread owns it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/check.h"
#include "core/runtime/scheduler.h"

namespace stoker {

struct DeviceCosts {
  ComputeCost compute;
  double upload_us_per_byte = 0.0;
};

class ExpertCosts {
 public:
  // What is given as zero is unknown, and the first observation is taken for it as it is; but of a
  // ComputeCost only if both parts are: a zero beside a cost stays.
  ExpertCosts(const ComputeCost& host, std::span<const DeviceCosts> devices);

  // Until something is observed, the values given. A single observation moves them by a tenth at
  // most, however wrong it is.
  const ComputeCost& host() const { return host_; }
  int num_devices() const { return static_cast<int>(devices_.size()); }
  const ComputeCost& device(int device) const { return devices_[checked(device)].compute; }
  double upload_us(int device, std::int64_t expert_bytes) const {
    return devices_[checked(device)].upload_us_per_byte * static_cast<double>(expert_bytes);
  }

  // `num_experts` experts, of `num_rows` rows in all, were computed one after another in `us`, from
  // when the first could begin: waiting for bytes is no cost. Nothing computed, or a time that is
  // not positive and finite, is ignored.
  void observe_host(int num_experts, int num_rows, double us);
  void observe_device(int device, int num_experts, int num_rows, double us);
  // Whole experts of `bytes` in all were copied in `us`, from when the copy engine could begin.
  void observe_upload(int device, std::int64_t bytes, double us);

 private:
  std::size_t checked(int device) const {
    CHECK(device >= 0 && device < num_devices(), "device {} of {}", device, num_devices());
    return static_cast<std::size_t>(device);
  }

  ComputeCost host_;
  std::vector<DeviceCosts> devices_;
};

}  // namespace stoker
