// The arithmetic of the routed experts in decode and verify: one definition per activation type
// that every instruction set and CUDA reproduce bit for bit, so that an expert may be computed
// wherever it is cheapest.
//
//   dot(w, x):   inputs in groups of spec.group, in ascending order. Within a group four partial
//   sums p0..p3 start at
//                +0; input k goes to p[k mod 4] by one fused multiply-add, in ascending k (columns
//                padded with zeros to a multiple of 4 take part; more of them, as INT4 has, would
//                change nothing). group = (p0 + p1) + (p2 + p3);
//                acc = fma(group, scale, acc), acc from +0; scale is 1 for formats without scales.
//                All in IEEE F32, round to nearest even, subnormals kept.
//   silu(g):     g / (1 + exp(-g)), exp as exp_defined below (fused steps in fixed order).
//   expert(x):   hidden = silu(gate . x) * (up . x); out = down . hidden
//   activations: bf16: x is bf16; gate, up, hidden and out are rounded to bf16 (spec 3.7). f32:
//   nothing is rounded. combine:     y from +0; y = fma(out, weight, y) over the chosen experts in
//   ascending id; then y + shared; one
//                rounding to the activation type.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tensor/quant_view.h"
#include "quant/tile16.h"

namespace stoker::quant {

STOKER_HD inline float fma_defined(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fmaf(a, b, c);
#endif
}

// e^x within 1.5 ulp on [-87, 88]; inputs are clamped to that range first. The same steps, in this
// order, in every kernel: n = rint(x * log2(e)); r = fma(n, -ln2_hi, x); r = fma(n, -ln2_lo, r);
// degree-6 Horner; scaling by 2^n.
struct ExpConstants {
  static constexpr float kMin = -87.0f;
  static constexpr float kMax = 88.0f;
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLn2Hi =
      0x1.62e400p-1f;  // ln 2 to 15 bits: n * kLn2Hi is exact for |n| <= 127
  static constexpr float kLn2Lo = 0x1.7f7d1cp-20f;  // ln 2 - kLn2Hi
  // Least-maximum coefficients of e^r = 1 + r + C2 r^2 + ... + C6 r^6 on |r| <= ln2 / 2, fitted by
  // us: relative error of the polynomial 3e-9, a twentieth of a rounding.
  static constexpr float kC6 = 0x1.6a234ep-10f;
  static constexpr float kC5 = 0x1.123a6cp-7f;
  static constexpr float kC4 = 0x1.5558f4p-5f;
  static constexpr float kC3 = 0x1.555490p-3f;
  static constexpr float kC2 = 0x1.fffffcp-2f;
};

STOKER_HD inline float exp_defined(float x) {
  using C = ExpConstants;
  x = x < C::kMin ? C::kMin : x;  // NaN passes through
  x = x > C::kMax ? C::kMax : x;
#ifdef __CUDA_ARCH__
  const float n = rintf(__fmul_rn(x, C::kLog2e));
#else
  const float n = std::nearbyintf(x * C::kLog2e);
#endif
  float r = fma_defined(n, -C::kLn2Hi, x);
  r = fma_defined(n, -C::kLn2Lo, r);
  float p = C::kC6;
  p = fma_defined(p, r, C::kC5);
  p = fma_defined(p, r, C::kC4);
  p = fma_defined(p, r, C::kC3);
  p = fma_defined(p, r, C::kC2);
  p = fma_defined(p, r, 1.0f);
  p = fma_defined(p, r, 1.0f);
  const std::int32_t exponent = x != x ? 0 : static_cast<std::int32_t>(n);
  return bits_to_f32(f32_to_bits(p) + (static_cast<std::uint32_t>(exponent) << 23));
}

STOKER_HD inline float silu_defined(float g) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(g, __fadd_rn(1.0f, exp_defined(-g)));
#else
  return g / (1.0f + exp_defined(-g));
#endif
}

// dot of row `row` of `w` (either layout) with x[cols]. The scalar definition; kernels equal it bit
// for bit.
float dot_defined(const QuantView& w, std::int64_t row, const float* x);

}  // namespace stoker::quant
