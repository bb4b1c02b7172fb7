// Launches that overlap: a kernel whose stream allows it may start when all blocks of the kernel
// before it have called start_next() or have ended, instead of when that kernel is complete
// ("programmatic dependent launch", compute capability 9.0). Every kernel that is launched by
// launch_kernel() therefore calls wait_for_previous() in all threads
//   - before it reads anything that an earlier kernel may have written, and
//   - before it writes anything, which an earlier kernel may still read or write.
// Only blocks that have nothing to do may leave without, where others of their launch wait.
// The wait ends when the kernel before is complete and what it wrote is visible. That kernel has
// waited itself, so all kernels before are complete too, however early each of them let the next
// one start. What follows an overlapped kernel as an ordinary launch, a copy, an event or the end
// of a graph waits for its completion, which implies the same.
//
// Before the wait stands what no kernel writes: indices, the tables of the step, and the first
// weights. Tables are copied when a step begins, in order: before the copy all kernels of earlier
// steps are complete, and no kernel of the step starts before it is. They, and weights of experts,
// do not go through the L1 cache before it, where a line may be left of what was in their slot
// before. A slot is filled while no kernel that reads it is enqueued, and the host has seen the end
// of that before it enqueues one. What follows a copy of another stream by an event alone starts in
// order (Start::kInOrder).
//
// What earlier kernels wrote is never read by __ldg(): such loads may be moved before the wait.
//
// Siblings: a kernel that calls start_next() only after its own wait lets the next one start when
// all before *it* is complete. So the next one, and any after that, may do without waiting whatever
// has nothing to do with that kernel and those since; and waits before it ends. route() is such a
// kernel, and linear_few() where it is told so.
//
// Capturing makes edges of these launches that are programmatic between two kernels, and ordinary
// after anything else. The first kernel of a graph has no edge, and starts as the graph does.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string_view>
#include <type_traits>

#include "gpu/error.h"
#include "gpu/native.h"

namespace stoker::gpu {

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Blocks of the next kernel take room only when all of this one's have had theirs: it can be called
// first.
__device__ inline void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Asks for a line to come to the L2 cache, in which it is never out of date: what is read after the
// wait may be asked for before it.
inline constexpr int kPrefetchLine = 128;
__device__ inline void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}
// `bytes` from there: all threads of a block.
__device__ inline void prefetch_block(const void* global, int bytes) {
  const int stride = static_cast<int>(blockDim.x) * kPrefetchLine;
  for (int at = static_cast<int>(threadIdx.x) * kPrefetchLine; at < bytes; at += stride) {
    prefetch_line(static_cast<const std::byte*>(global) + at);
  }
}

enum class Start : std::uint8_t { kEarly, kInOrder };

struct LaunchShape {
  dim3 grid;
  dim3 threads;  // of a block
  int shared_bytes = 0;
  Start start = Start::kEarly;  // if the stream allows it
  unsigned cluster_blocks = 1;
};

template <typename... Params>
Status launch_kernel(std::string_view name, void (*kernel)(Params...), const LaunchShape& shape,
                     const Stream& stream, const std::type_identity_t<Params>&... params) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = native(stream);
  config.attrs = attributes;
  if (stream.overlaps() && shape.start == Start::kEarly) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster_blocks > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {shape.cluster_blocks, 1, 1};
  }
  // By address: some parameters are large.
  const void* arguments[] = {&params...};
  return cuda_status(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel),
                                         const_cast<void**>(arguments)),
                     name);
}

}  // namespace stoker::gpu
