// What the driver says of a GPU.
#pragma once

#include "core/base/error.h"
#include "gpu/factory.h"

namespace stoker::gpu {

// Takes no memory of it.
Result<GpuInfo> gpu_info(int device);

// Whether backends can run on the GPU, which is the calling thread's: it is new enough, and this
// build holds kernels for it.
Status check_usable(int device);

}  // namespace stoker::gpu
