#include "gpu/gpu_info.h"

#include <cuda_runtime_api.h>

#include "gpu/device.h"
#include "gpu/error.h"
#include "gpu/launch.h"

namespace stoker {
namespace gpu {

Result<GpuInfo> gpu_info(int device) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(
      cuda_status(cudaGetDeviceProperties(&properties, device), "reading device properties"));
  GpuInfo info;
  info.name = properties.name;
  info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  char bus_id[32] = {};
  if (cuda_status(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device), "asking for it").ok()) {
    info.bus_id = bus_id;
  }
  return info;
}

Status check_usable(int device) {
  ASSIGN_OR_RETURN(const GpuInfo info, gpu_info(device));
  RETURN_IF_ERROR(info.usable());
  RETURN_IF_ERROR(kernels_available(), "{}, compute capability {}.{}", info.name,
                  info.compute_major, info.compute_minor);
  return {};
}

}  // namespace gpu

std::vector<GpuInfo> list_gpus() {
  std::vector<GpuInfo> gpus;
  int num_devices = 0;
  if (!gpu::cuda_status(cudaGetDeviceCount(&num_devices), "looking for devices").ok()) return gpus;
  for (int device = 0; device < num_devices; ++device) {
    Result<GpuInfo> info = gpu::gpu_info(device);
    if (info.ok()) {
      gpus.push_back(*std::move(info));
      continue;
    }
    GpuInfo& silent = gpus.emplace_back();  // in its place, by which --devices names it
    silent.name = "unknown";
    silent.fault = info.error().message();
  }
  return gpus;
}

Result<std::int64_t> open_gpu(int device) {
  RETURN_IF_ERROR(gpu::check_gpu(device));
  RETURN_IF_ERROR(gpu::use_device(device));
  RETURN_IF_ERROR(gpu::check_usable(device));
  std::size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(
      gpu::cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory"));
  return static_cast<std::int64_t>(free_bytes);
}

}  // namespace stoker
