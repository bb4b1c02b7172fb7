// Kernels for AVX2 + FMA + F16C. Compiled with those flags: nothing in here may be an inline
// function of a shared header, which the linker could pick for machines without them.
#include "cpu/kernels.h"
#include "quant/defined_arithmetic.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace stoker::cpu {
namespace {

struct Simd {
  static constexpr Isa kIsa = Isa::kAvx2;
  static constexpr int kLanes = 8;
  static constexpr int kMaxRows = 2;
  static constexpr int kManyRows = 3;
  static constexpr int kSums = 8;
  static constexpr int kPairedPasses = 1;
  static constexpr int kDotRows = 2;
  static constexpr bool kPaired = true;
  using V = __m256;
  using U = __m256i;

  static V zero() { return _mm256_setzero_ps(); }
  static V set1(float x) { return _mm256_set1_ps(x); }
  // x0 x1 x0 x1 ...
  static V set2(const float* x) {
    return _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(x)));
  }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V madd(V a, V b, V c) { return fma(a, b, c); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V rint(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V scale_2n(V p, V n) {
    const U exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }

  static U load_u32(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static V low_bf16(U dword) { return _mm256_castsi256_ps(_mm256_slli_epi32(dword, 16)); }
  static V high_bf16(U dword) {
    return _mm256_castsi256_ps(_mm256_and_si256(dword, _mm256_set1_epi32(-65536)));
  }
  // The low halves of 8 dwords, brought together and widened.
  static V low_f16(U dword) {
    const U low = _mm256_and_si256(dword, _mm256_set1_epi32(0xffff));
    const U packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static V high_f16(U dword) { return low_f16(_mm256_srli_epi32(dword, 16)); }

  // 8 rows x 4 codes -> the upper two bytes of their F32, by nibble tables, then widened. Codes
  // with exponent 0 or 1 have tables of their own, because subnormals must be normalised (by
  // multiplication they would cost a microcode assist each).
  //   d[0] = r0k0 r0k2 r1k0 r1k2 | ..., d[1] = k1 k3 of the same rows, d[2], d[3]: rows 2, 3
  static void fp8(const std::byte* p, V d[4]) {
    const U codes = load_u32(p);
    const U low4 = _mm256_set1_epi8(0x0f);
    const U low = _mm256_and_si256(codes, low4);
    const U high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(0x07));
    const U normal_hi = _mm256_add_epi8(high, _mm256_set1_epi8(60));  // exponent (E + 120) / 2
    const U normal_lo = _mm256_slli_epi16(low, 4);
    const U small = _mm256_cmpeq_epi8(high, _mm256_setzero_si256());
    const U small_hi = _mm256_shuffle_epi8(
        table(0, 59, 59, 59, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60), low);
    const U small_lo = _mm256_shuffle_epi8(
        table(0, 0, -128, -64, 0, 32, 64, 96, -128, -112, -96, -80, -64, -48, -32, -16), low);
    const U sign = _mm256_and_si256(codes, _mm256_set1_epi8(-128));
    const U hi = _mm256_or_si256(_mm256_blendv_epi8(normal_hi, small_hi, small), sign);
    const U lo = _mm256_blendv_epi8(normal_lo, small_lo, small);
    const U rows01 = _mm256_unpacklo_epi8(lo, hi);
    const U rows23 = _mm256_unpackhi_epi8(lo, hi);
    d[0] = low_bf16(rows01);
    d[1] = high_bf16(rows01);
    d[2] = low_bf16(rows23);
    d[3] = high_bf16(rows23);
  }
  static U table(char a, char b, char c, char d, char e, char f, char g, char h, char i, char j,
                 char k, char l, char m, char n, char o, char q) {
    return _mm256_setr_epi8(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, q, a, b, c, d, e, f, g, h,
                            i, j, k, l, m, n, o, q);
  }
  // 8 rows x 4, and 8 rows x 8, codes: d[k] = column k.
  static void int8(const std::byte* p, V d[4]) {
    const U codes = load_u32(p);
    d[0] = high_bits<24>(_mm256_slli_epi32(codes, 24));
    d[1] = high_bits<24>(_mm256_slli_epi32(codes, 16));
    d[2] = high_bits<24>(_mm256_slli_epi32(codes, 8));
    d[3] = high_bits<24>(codes);
  }
  static void int4(const std::byte* p, V d[8]) {
    const U codes = load_u32(p);
    d[0] = high_bits<28>(_mm256_slli_epi32(codes, 28));
    d[1] = high_bits<28>(_mm256_slli_epi32(codes, 24));
    d[2] = high_bits<28>(_mm256_slli_epi32(codes, 20));
    d[3] = high_bits<28>(_mm256_slli_epi32(codes, 16));
    d[4] = high_bits<28>(_mm256_slli_epi32(codes, 12));
    d[5] = high_bits<28>(_mm256_slli_epi32(codes, 8));
    d[6] = high_bits<28>(_mm256_slli_epi32(codes, 4));
    d[7] = high_bits<28>(codes);
  }
  template <int kShift>
  static V high_bits(U dword) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(dword, kShift));
  }
  static V pair_even(V a, V b) { return _mm256_shuffle_ps(a, b, 0x88); }
  static V pair_odd(V a, V b) { return _mm256_shuffle_ps(a, b, 0xdd); }

  // Neighbouring codes, by way of F16: its exponent's bias is larger by 8, its subnormals cost
  // nothing.
  static V load_fp8(const std::byte* p) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i moved = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7);
    const __m128i half = _mm_and_si128(moved, _mm_set1_epi16(static_cast<short>(0xbf80)));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
  }
  static V load_bf16(const std::uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static U round_bits(V v) {  // BF16 in the upper half, what lies below is noise
    const U bits = _mm256_castps_si256(v);
    const U odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const U rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const U quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const U nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
  }
  static V round_bf16(V v) { return high_bf16(round_bits(v)); }
  static void store_bf16(std::uint16_t* p, V v) {
    const U upper = _mm256_srli_epi32(round_bits(v), 16);
    const U packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store_bf16_pair(std::byte* p, V lo, V hi) {
    const U low = _mm256_srli_epi32(round_bits(lo), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_blend_epi16(low, round_bits(hi), 0xaa));
  }
  static void reduce4(V a, V b, V c, V d, float out[4]) {
    const V sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
};

#include "cpu/kernels-inl.h"

}  // namespace

const Kernels* avx2_kernels() { return &kTable; }

}  // namespace stoker::cpu

#else

const stoker::cpu::Kernels* stoker::cpu::avx2_kernels() { return nullptr; }

#endif
