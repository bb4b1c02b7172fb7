// Copies from device to shared memory that go on while the thread does something else, in batches
// that end in the order in which they were committed. A thread sees what it copied itself.
#pragma once

#include <cuda_runtime.h>

namespace stoker::gpu {

__device__ inline void copy_16_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kBatches>
__device__ inline void wait_for_all_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBatches) : "memory");
}

}  // namespace stoker::gpu
