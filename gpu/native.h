// Handles of gpu/device.h as the CUDA runtime takes them.
#pragma once

#include <cuda_runtime_api.h>

#include "gpu/device.h"

namespace stoker::gpu {

inline cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.handle());
}
inline cudaEvent_t native(const StreamEvent& event) {
  return static_cast<cudaEvent_t>(event.handle());
}

}  // namespace stoker::gpu
