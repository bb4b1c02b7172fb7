// Reading and writing activations of either type. The branch is the same for a whole launch.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "core/tensor/tensor.h"
#include "gpu/device.h"
#include "gpu/error.h"

namespace stoker::gpu {

__device__ inline float load(const TensorView& view, std::int64_t row, std::int64_t col) {
  const std::int64_t at = row * view.row_stride + col;
  return view.dtype == DType::kF32 ? static_cast<const float*>(view.data)[at]
                                   : to_f32(static_cast<const bf16*>(view.data)[at]);
}

// Columns first, first + stride, ... of a row, all on their way at once; zeros past its end.
template <typename T, int kCount>
__device__ inline void load_batch_as(const TensorView& view, std::int64_t row, int first,
                                     int stride, float (&out)[kCount]) {
  const T* const from = static_cast<const T*>(view.data) + row * view.row_stride;
  T batch[kCount] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (first + i * stride < view.cols) batch[i] = from[first + i * stride];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      out[i] = batch[i];
    } else {
      out[i] = to_f32(batch[i]);
    }
  }
}
template <int kCount>
__device__ inline void load_batch(const TensorView& view, std::int64_t row, int first, int stride,
                                  float (&out)[kCount]) {
  if (view.dtype == DType::kF32) {
    load_batch_as<float>(view, row, first, stride, out);
  } else {
    load_batch_as<bf16>(view, row, first, stride, out);
  }
}

// What `value` becomes when it is stored as `dtype`.
__device__ inline float rounded(DType dtype, float value) {
  return dtype == DType::kF32 ? value : round_to_bf16(value);
}

__device__ inline void store(const TensorView& view, std::int64_t row, std::int64_t col,
                             float value) {
  const std::int64_t at = row * view.row_stride + col;
  if (view.dtype == DType::kF32) {
    static_cast<float*>(view.data)[at] = value;
  } else {
    static_cast<bf16*>(view.data)[at] = to_bf16(value);
  }
}

inline bool is_activation(const TensorView& view) {
  return view.dtype == DType::kF32 || view.dtype == DType::kBf16;
}

inline unsigned blocks_for(std::int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

// Lets `kernel` have that much shared memory.
template <typename Kernel>
Status allow_shared(Kernel* kernel, int bytes) {
  constexpr int kAlwaysAllowed = 48 << 10;
  if (bytes <= kAlwaysAllowed) return {};
  return cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      "asking for shared memory");
}

// An attribute of the current device.
inline Result<int> device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "asking for the device"));
  RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&value, attribute, device), "asking what the device has"));
  return value;
}

// How many such blocks the current device runs side by side.
template <typename Kernel>
Result<std::int64_t> blocks_at_once(Kernel* kernel, int threads, int shared_bytes) {
  ASSIGN_OR_RETURN(const int multiprocessors, device_attribute(cudaDevAttrMultiProcessorCount));
  int blocks = 0;
  RETURN_IF_ERROR(cuda_status(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                  &blocks, kernel, threads, static_cast<std::size_t>(shared_bytes)),
                              "asking how many blocks fit"));
  return std::int64_t{multiprocessors} * blocks;
}

}  // namespace stoker::gpu
