// Products of BF16 tiles on tensor cores (mma.sync m16n8k16, compute capability 8.0 and newer) and
// the copies that feed them. Within a product every element of C is its own chain of sums over k,
// so what stands in other rows and columns does not touch its bits.
//
// Fragments, for lane = 4 * g + t: A holds rows g and g + 8, B column g, C rows g and g + 8 and
// columns 2t and 2t + 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor/dtype.h"

namespace stoker::gpu {

inline constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;
inline constexpr int kChunk = 8;  // BF16 values of 16 bytes: what one lane of ldmatrix points to
inline constexpr int kChunkBytes = 16;

// This thread's g and t.
struct FragmentLane {
  int group, member;
};
__device__ inline FragmentLane fragment_lane() {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {lane / 4, lane % 4};
}

// A thread's place in its block.
struct BlockLane {
  int thread, lane, warp;
  int group, member;       // as in fragments
  int matrix, matrix_row;  // as in load_matrices()

  __device__ BlockLane() : thread(static_cast<int>(threadIdx.x)) {
    lane = thread % 32, warp = thread / 32;
    group = lane / 4, member = lane % 4;
    matrix = lane / 8, matrix_row = lane % 8;
  }
  // Of two matrices below each other.
  __device__ int pair_row() const { return matrix % 2 * 8 + matrix_row; }
};

// c += a . b
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Shared memory by byte address, as the instructions below take it.
__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Four matrices of 8 x 8: lane l points to row l % 8 of matrix l / 8.
__device__ inline void load_matrices(unsigned (&out)[4], unsigned shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&out)[4], unsigned shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}

// Copies 16 bytes to shared memory, or writes zeros there; done after wait_for_copies(). Nothing at
// all unless `wanted`, without a branch: one would keep instructions around it apart.
__device__ inline void copy_async(unsigned shared, const bf16* global, bool valid = true,
                                  bool wanted = true) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %3, 0;\n"
      "@wanted cp.async.cg.shared.global [%0], [%1], 16, %2;\n}" ::"r"(shared),
      "l"(global), "r"(valid ? 16 : 0), "r"(static_cast<int>(wanted))
      : "memory");
}
__device__ inline void write_16(unsigned shared, const uint4& values) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(values.x),
               "r"(values.y), "r"(values.z), "r"(values.w)
               : "memory");
}
__device__ inline void copy_word_async(unsigned shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}
// All copies of this thread.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline unsigned pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}

}  // namespace stoker::gpu
