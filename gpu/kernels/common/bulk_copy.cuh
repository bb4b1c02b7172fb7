// Copies of whole pieces of memory into shared memory by one thread each, and barriers in shared
// memory that count what has come. Addresses and sizes are multiples of 16 bytes. Compute
// capability 9.0.
#pragma once

#include <cuda_runtime.h>

namespace stoker::gpu {

// For `count` arrivals a phase. Others see it after fence_barrier() and a barrier of theirs.
__device__ inline void init_barrier(unsigned barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void fence_barrier() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and announces `bytes` that will come.
__device__ inline void arrive(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ inline void copy_bulk(unsigned shared, const void* global, unsigned bytes,
                                 unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}
// For all arrivals and bytes of the first phase, be they from this block or another of the cluster.
__device__ inline void wait_at(unsigned barrier) {
  asm volatile(
      "{\n.reg .pred done;\nwaiting:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@done bra over;\nbra waiting;\nover:\n}" ::"r"(barrier)
      : "memory");
}

}  // namespace stoker::gpu
