// Blocks of a cluster that hand values to each other: stores into another's shared memory which a
// barrier there counts (common/bulk_copy.cuh). Compute capability 9.0.
#pragma once

#include <cuda_runtime.h>

namespace stoker::gpu {

// Tells the blocks of the cluster that this one has begun, and that its barriers are initialised if
// fence_barrier() came before; and learns the same of them. All threads. Orders nothing else.
__device__ inline void arrive_in_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// The same place in the shared memory of block `rank` of the cluster.
__device__ inline unsigned shared_of_block(unsigned shared, unsigned rank) {
  unsigned out;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(shared), "r"(rank));
  return out;
}

// Stores into a block that has begun and stays until `barrier`, which is its own, has counted them.
__device__ inline void send(unsigned shared, float value, unsigned barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
          shared),
      "f"(value), "r"(barrier)
      : "memory");
}
__device__ inline void send(unsigned shared, const float (&four)[4], unsigned barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(shared),
      "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3]), "r"(barrier)
      : "memory");
}

}  // namespace stoker::gpu
