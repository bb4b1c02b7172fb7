// The factory of a build with CUDA.
#include <cuda_runtime_api.h>

#include "gpu/backend.h"
#include "gpu/cublaslt.h"
#include "gpu/device_slots.h"
#include "gpu/error.h"
#include "gpu/factory.h"

namespace stoker {
namespace {

std::string version_name(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Nothing where the two cannot.
Status enable_peer_access(int from, int to) {
  int possible = 0;
  RETURN_IF_ERROR(gpu::cuda_status(cudaDeviceCanAccessPeer(&possible, from, to),
                                   "asking for access to a peer"));
  if (possible == 0) return {};
  RETURN_IF_ERROR(gpu::use_device(from));
  const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
  // A device has peers up to a number; the others are those that cannot.
  if (error == cudaErrorPeerAccessAlreadyEnabled || error == cudaErrorTooManyPeers) {
    (void)cudaGetLastError();
    return {};
  }
  return gpu::cuda_status(error, "enabling access to a peer");
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& options) {
  RETURN_IF_ERROR(gpu::check_gpu(options.device));
  return gpu::CudaBackend::create(options);
}

CudaScratch cuda_scratch_held(const Backend& backend) {
  const auto* cuda = dynamic_cast<const gpu::CudaBackend*>(&backend);
  CHECK(cuda != nullptr, "scratch of a {} backend", backend.name());
  return cuda->scratch_held();
}

int cuda_graphs_held(const Backend& backend) {
  const auto* cuda = dynamic_cast<const gpu::CudaBackend*>(&backend);
  CHECK(cuda != nullptr, "graphs of a {} backend", backend.name());
  return cuda->graphs_held();
}

Status enable_peer_access(std::span<const int> gpus) {
  for (const int from : gpus) RETURN_IF_ERROR(gpu::check_gpu(from));
  for (const int from : gpus) {
    for (const int to : gpus) {
      if (from == to) continue;
      RETURN_IF_ERROR(enable_peer_access(from, to), "GPU {} to the memory of GPU {}", from, to);
    }
  }
  return {};
}

Result<std::unique_ptr<DeviceSlots>> make_cuda_slots(const CudaSlotsOptions& options) {
  RETURN_IF_ERROR(gpu::check_gpu(options.device));
  return gpu::CudaSlots::create(options);
}

std::string cuda_support() {
  const std::string built = fmt::format("built with CUDA {}", version_name(CUDART_VERSION));
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return built + "; no NVIDIA driver on this machine";
  }
  int num_devices = 0;
  const Status status = gpu::cuda_status(cudaGetDeviceCount(&num_devices), "looking for devices");
  if (!status.ok()) {
    return fmt::format("{}; driver for CUDA {}, no usable device: {}", built, version_name(driver),
                       status.error().message());
  }
  std::string there = fmt::format("{}; driver for CUDA {}, {} device{}", built,
                                  version_name(driver), num_devices, num_devices == 1 ? "" : "s");
  if (const std::string missing = gpu::CublasLt::missing_library(); !missing.empty()) {
    there += fmt::format("; no {}, without which prompts take much longer", missing);
  }
  return there;
}

}  // namespace stoker
