// The bodies of all kernels, written once against `Simd`, which the including file defines before
// it includes this inside its anonymous namespace. No include guard, no includes, and no function
// of a shared header that is not a compiler builtin: whatever is called here must be this
// instruction set's own.

using V = Simd::V;
using U = Simd::U;
constexpr int kLanes = Simd::kLanes;
constexpr int kTile = 16;                // rows of a tile
constexpr int kSlices = kTile / kLanes;  // vectors per 16 values

#define STOKER_KERNEL [[gnu::always_inline]] static inline

// ---- 16 values at a time, whatever the width: sums walk the same 16 partial sums everywhere. ----

struct V16 {
  V v[kSlices];
};

template <typename F>
STOKER_KERNEL V16 each(F f) {
  V16 out;
  for (int s = 0; s < kSlices; ++s) out.v[s] = f(s);
  return out;
}
STOKER_KERNEL V16 set16(float x) {
  return each([&](int) { return Simd::set1(x); });
}
STOKER_KERNEL V16 load16(const float* p) {
  return each([&](int s) { return Simd::load(p + s * kLanes); });
}
STOKER_KERNEL V16 load16(const std::uint16_t* p) {
  return each([&](int s) { return Simd::load_bf16(p + s * kLanes); });
}
STOKER_KERNEL V16 load16(const std::byte* p) {  // FP8 codes
  return each([&](int s) { return Simd::load_fp8(p + s * kLanes); });
}
STOKER_KERNEL void store16(float* p, const V16& x) {
  for (int s = 0; s < kSlices; ++s) Simd::store(p + s * kLanes, x.v[s]);
}
STOKER_KERNEL void store16(std::uint16_t* p, const V16& x) {
  for (int s = 0; s < kSlices; ++s) Simd::store_bf16(p + s * kLanes, x.v[s]);
}
STOKER_KERNEL V16 add16(const V16& a, const V16& b) {
  return each([&](int s) { return Simd::add(a.v[s], b.v[s]); });
}
STOKER_KERNEL V16 mul16(const V16& a, const V16& b) {
  return each([&](int s) { return Simd::mul(a.v[s], b.v[s]); });
}
STOKER_KERNEL V16 fma16(const V16& a, const V16& b, const V16& c) {
  return each([&](int s) { return Simd::fma(a.v[s], b.v[s], c.v[s]); });
}
// What a store as `T` and a load would give.
STOKER_KERNEL V16 rounded16(const V16& x, const float*) { return x; }
STOKER_KERNEL V16 rounded16(const V16& x, const std::uint16_t*) {
  return each([&](int s) { return Simd::round_bf16(x.v[s]); });
}

// The tail of a row goes through a padded copy.
template <typename T>
STOKER_KERNEL V16 load_part(const T* p, std::int64_t count, T pad = T{}) {
  T copy[kTile];
  for (int i = 0; i < kTile; ++i) copy[i] = i < count ? p[i] : pad;
  return load16(copy);
}
template <typename T>
STOKER_KERNEL void store_part(T* p, const V16& x, std::int64_t count) {
  T copy[kTile];
  store16(copy, x);
  for (int i = 0; i < count; ++i) p[i] = copy[i];
}
template <typename T>
STOKER_KERNEL V16 load_at(const T* p, std::int64_t i, std::int64_t n) {
  return n - i >= kTile ? load16(p + i) : load_part(p + i, n - i);
}
template <typename T>
STOKER_KERNEL void store_at(T* p, std::int64_t i, std::int64_t n, const V16& x) {
  if (n - i >= kTile) {
    store16(p + i, x);
  } else {
    store_part(p + i, x, n - i);
  }
}

STOKER_KERNEL float sum16(const V16& x) {
  float part[kTile];
  store16(part, x);
  for (int width = kTile / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}

// quant::exp_defined, step by step. Constants are shared: only functions must not be.
STOKER_KERNEL V exp_v(V x) {
  using C = quant::ExpConstants;
  x = Simd::max(Simd::set1(C::kMin), x);  // the second operand where it is NaN
  x = Simd::min(Simd::set1(C::kMax), x);
  const V n = Simd::rint(Simd::mul(x, Simd::set1(C::kLog2e)));
  V r = Simd::fma(n, Simd::set1(-C::kLn2Hi), x);
  r = Simd::fma(n, Simd::set1(-C::kLn2Lo), r);
  V p = Simd::set1(C::kC6);
  p = Simd::fma(p, r, Simd::set1(C::kC5));
  p = Simd::fma(p, r, Simd::set1(C::kC4));
  p = Simd::fma(p, r, Simd::set1(C::kC3));
  p = Simd::fma(p, r, Simd::set1(C::kC2));
  p = Simd::fma(p, r, Simd::set1(1.0f));
  p = Simd::fma(p, r, Simd::set1(1.0f));
  return Simd::scale_2n(p, n);
}
STOKER_KERNEL V silu_v(V g) {
  // 0 - g would turn +0 into +0, not -0; exp gives 1 for both.
  const V minus = Simd::mul(g, Simd::set1(-1.0f));
  return Simd::div(g, Simd::add(Simd::set1(1.0f), exp_v(minus)));
}

// Calls f with a typed null pointer that says what the rows hold.
template <typename F>
STOKER_KERNEL void with_type(DType dtype, F f) {
  if (dtype == DType::kBf16) {
    f(static_cast<std::uint16_t*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

#include "cpu/kernels_attend-inl.h"
#include "cpu/kernels_peak-inl.h"
#include "cpu/kernels_rows-inl.h"
#include "cpu/kernels_tile-inl.h"
// After it: built on the same formats.
#include "cpu/kernels_many-inl.h"

constexpr Kernels kTable = {
    .isa = Simd::kIsa,
    .prepare_row = prepare_row,
    .tile_product = tile_product,
    .decode_panel = decode_panel,
    .convert = convert,
    .scale = scale,
    .silu_mul = silu_mul,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .layer_norm = layer_norm,
    .rope = rope,
    .combine = combine,
    .decode_kv_row = decode_kv_row,
    .dot_block = dot_block,
    .add_weighted = add_weighted,
    .softmax = softmax,
    .relu_weigh = relu_weigh,
    .fma_peak = fma_peak,
};
