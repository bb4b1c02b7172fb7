// Single instructions on words that the compiler does not find by itself, and what they compute on
// the host.
#pragma once

#include <cstdint>

#include "core/base/hd.h"

namespace stoker::gpu {

// Bytes of a and b (numbers 0 .. 3 and 4 .. 7) by the nibbles of `order`, lowest first; 8 more:
// only the byte's upper bit, all over.
STOKER_HD inline std::uint32_t pick_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t order) {
  std::uint32_t out = 0;
#ifdef __CUDA_ARCH__
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(order));
#else
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t from = order >> (4 * i) & 15;
    const std::uint32_t byte = ((from & 7) < 4 ? a : b) >> (8 * (from % 4)) & 0xff;
    out |= (from < 8 ? byte : (byte >> 7) * 0xff) << (8 * i);
  }
#endif
  return out;
}
// (word & mask) ^ bits.
STOKER_HD inline std::uint32_t masked_xor(std::uint32_t word, std::uint32_t mask,
                                          std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  std::uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(word), "r"(mask), "r"(bits));
  return out;
#else
  return (word & mask) ^ bits;
#endif
}
// (word & mask) | bits, in one instruction, where the compiler, which has room for one constant in
// it, would take two.
STOKER_HD inline std::uint32_t masked_or(std::uint32_t word, std::uint32_t mask,
                                         std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  std::uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(bits));
  return out;
#else
  return (word & mask) | bits;
#endif
}

}  // namespace stoker::gpu
