// CUDA's error codes become Errors here, with the name of the operation. The code travels as an
// int, so that this header needs no CUDA.
#pragma once

#include <string_view>

#include "core/base/error.h"

namespace stoker::gpu {

// Ok if `cuda_error` (a cudaError_t) is cudaSuccess. Out of memory becomes kResource, a missing
// driver or device kNotFound, all else kIo.
Status cuda_status(int cuda_error, std::string_view operation);

// The same for the launch that the calling thread made last.
Status launch_status(std::string_view kernel);

}  // namespace stoker::gpu
