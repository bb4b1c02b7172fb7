// Kernels in plain C++: what every machine can run.
#include "cpu/kernels.h"
#include "quant/defined_arithmetic.h"

namespace stoker::cpu {
namespace {

struct Simd {
  static constexpr Isa kIsa = Isa::kScalar;
  static constexpr int kLanes = 1;
  static constexpr int kMaxRows = 1;   // rows of x per pass of tile_product
  static constexpr int kManyRows = 4;  // from how many on a group is decoded once for all
  static constexpr int kSums = 8;      // vectors of sums under way then
  static constexpr int kPairedPasses =
      1;                              // passes walked side by side in paired arrangement, 1 or 2
  static constexpr int kDotRows = 1;  // rows of q per pass of dot_block
  static constexpr bool kPaired = false;
  using V = float;
  using U = std::uint32_t;  // the dword of each lane

  static V as_f32(U bits) {
    V value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
  static U as_u32(V value) {
    U bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
  }
  static V zero() { return 0.0f; }
  static V set1(float x) { return x; }
  static V load(const float* p) { return *p; }
  static void store(float* p, V v) { *p = v; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return __builtin_fmaf(a, b, c); }
  static V madd(V a, V b, V c) { return a * b + c; }  // where one rounding or two does not matter
  static V max(V a, V b) { return a > b ? a : b; }    // b if either is NaN
  static V min(V a, V b) { return a < b ? a : b; }
  static V rint(V a) { return __builtin_nearbyintf(a); }
  // p * 2^n for integral n by exponent arithmetic; n NaN: p
  static V scale_2n(V p, V n) {
    const U exponent = n != n ? 0u : static_cast<U>(static_cast<std::int32_t>(n));
    return as_f32(as_u32(p) + (exponent << 23));
  }

  static U load_u32(const std::byte* p) {
    U bits;
    __builtin_memcpy(&bits, p, 4);
    return bits;
  }
  static V low_bf16(U dword) { return as_f32(dword << 16); }
  static V high_bf16(U dword) { return as_f32(dword & 0xffff0000u); }
  static V f16(U half) {
    const V magnitude = as_f32((half & 0x7fffu) << 13) * 0x1p112f;
    const U special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u | (half & 0x3ffu) << 13 : 0u;
    return as_f32((half & 0x8000u) << 16 | (special != 0 ? special : as_u32(magnitude)));
  }
  static V low_f16(U dword) { return f16(dword & 0xffffu); }
  static V high_f16(U dword) { return f16(dword >> 16); }
  static void fp8(const std::byte* p, V d[4]) {
    for (int i = 0; i < 4; ++i) {
      const U code = static_cast<U>(p[i]);
      const V magnitude = as_f32((code & 0x7fu) << 20) * 0x1p120f;
      d[i] = as_f32((code & 0x80u) << 24 | as_u32(magnitude));
    }
  }

  static void int8(const std::byte* p, V d[4]) {
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(static_cast<std::int8_t>(p[i]));
  }
  static void int4(const std::byte* p, V d[8]) {
    const U codes = load_u32(p);
    for (int i = 0; i < 8; ++i) {
      d[i] = static_cast<float>(static_cast<std::int32_t>(codes << (28 - 4 * i)) >> 28);
    }
  }

  static V load_fp8(const std::byte* p) {
    const U code = static_cast<U>(*p);
    const V magnitude = as_f32((code & 0x7fu) << 20) * 0x1p120f;
    return as_f32((code & 0x80u) << 24 | as_u32(magnitude));
  }
  static V load_bf16(const std::uint16_t* p) { return as_f32(static_cast<U>(*p) << 16); }
  static U round_bits(V v) {  // BF16 in the upper half
    const U bits = as_u32(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits | 0x400000u) & 0xffff0000u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  }
  static V round_bf16(V v) { return as_f32(round_bits(v)); }
  static void store_bf16(std::uint16_t* p, V v) {
    *p = static_cast<std::uint16_t>(round_bits(v) >> 16);
  }
  // Dwords of a BF16 panel: lo and hi rounded, side by side.
  static void store_bf16_pair(std::byte* p, V lo, V hi) {
    const U pair = round_bits(lo) >> 16 | round_bits(hi);
    __builtin_memcpy(p, &pair, 4);
  }
  static void reduce4(V a, V b, V c, V d, float out[4]) {
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
  }
};

#include "cpu/kernels-inl.h"

}  // namespace

const Kernels* scalar_kernels() { return &kTable; }

}  // namespace stoker::cpu
