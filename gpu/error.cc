#include "gpu/error.h"

#include <cuda_runtime_api.h>

namespace stoker::gpu {
namespace {

ErrorCode code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return ErrorCode::kResource;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
      return ErrorCode::kNotFound;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

Status cuda_status(int cuda_error, std::string_view operation) {
  const auto error = static_cast<cudaError_t>(cuda_error);
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // errors that are not sticky must not show up in a later call
  return make_error(code_of(error), "CUDA: {}: {} ({})", operation, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

Status launch_status(std::string_view kernel) { return cuda_status(cudaGetLastError(), kernel); }

}  // namespace stoker::gpu
