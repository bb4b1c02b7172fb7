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
// Bit for bit what kTable says of three: its bit 4a + 2b + c.
template <std::uint32_t kTable>
STOKER_HD std::uint32_t combine_bits(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t out = 0;
#ifdef __CUDA_ARCH__
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out) : "r"(a), "r"(b), "r"(c), "n"(kTable));
#else
  for (std::uint32_t i = 0; i < 8; ++i) {
    if ((kTable >> i & 1) == 0) continue;
    out |= ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
  }
#endif
  return out;
}
// (word & mask) ^ bits, and (word & mask) | bits. The compiler, which has room for one constant in
// an instruction, would take two.
STOKER_HD inline std::uint32_t masked_xor(std::uint32_t word, std::uint32_t mask,
                                          std::uint32_t bits) {
  return combine_bits<0x6a>(word, mask, bits);
}
STOKER_HD inline std::uint32_t masked_or(std::uint32_t word, std::uint32_t mask,
                                         std::uint32_t bits) {
  return combine_bits<0xea>(word, mask, bits);
}

}  // namespace stoker::gpu
