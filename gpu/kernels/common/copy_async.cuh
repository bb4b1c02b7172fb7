// Copies from device to shared memory that go on while the thread does something else, in batches
// that end in the order in which they were committed. A thread sees what it copied itself. Shared
// memory goes by byte address (shared_address()), which costs fewer instructions than a pointer.
#pragma once

#include <cuda_runtime.h>

#include "gpu/kernels/common/mma.cuh"

namespace stoker::gpu {

__device__ inline void copy_16_async(unsigned shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kBatches>
__device__ inline void wait_for_all_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBatches) : "memory");
}

__device__ inline uint4 read_16(unsigned shared) {
  uint4 out;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(shared)
               : "memory");
  return out;
}

}  // namespace stoker::gpu
