// What the rest of the program sees of CUDA. Every function here exists in every build: without
// CUDA, or on a machine without a driver, they say so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"

namespace stoker {

struct CudaBackendOptions {
  int device = 0;                        // index into list_gpus()
  DType activations = DType::kBf16;      // kBf16 or kF32
  DType kv_cache = DType::kBf16;         // kBf16 or kF32
  std::int64_t staging_bytes = 8 << 20;  // pinned, for tables of a step
};

// The backend of one GPU, or what is missing: built without CUDA, no driver, no such device, a
// device older than the kernels.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& options);

struct GpuInfo {
  std::string name;
  std::string bus_id;  // PCI, "0000:01:00.0"
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;
  int compute_major = 0, compute_minor = 0;
  int num_multiprocessors = 0;
};

// The GPUs that the driver shows, in its order. Empty without CUDA, driver or device.
std::vector<GpuInfo> list_gpus();

// One sentence: built with which CUDA or without, and which driver is there or what is missing.
std::string cuda_support();

}  // namespace stoker
