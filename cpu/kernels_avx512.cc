// Kernels for AVX-512 F, BW, DQ, VL, VBMI. Compiled with those flags: nothing in here may be an
// inline function of a shared header, which the linker could pick for machines without them.
#include "cpu/kernels.h"
#include "quant/defined_arithmetic.h"

#if defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

#include <immintrin.h>

namespace stoker::cpu {
namespace {

// The upper two bytes of the F32 that an FP8 magnitude stands for.
struct Fp8Tables {
  alignas(64) std::uint8_t hi[128] = {};
  alignas(64) std::uint8_t lo[128] = {};
};
constexpr Fp8Tables make_fp8_tables() {
  Fp8Tables tables;
  for (int code = 1; code < 127; ++code) {
    int exponent = code >> 3, mantissa = code & 7;
    if (exponent == 0) {  // subnormal: mantissa / 8 * 2^-6, normalised
      exponent = 1;
      while ((mantissa & 8) == 0) {
        mantissa <<= 1;
        --exponent;
      }
      mantissa &= 7;
    }
    const int bits = (exponent + 120) << 7 | mantissa << 4;
    tables.hi[code] = static_cast<std::uint8_t>(bits >> 8);
    tables.lo[code] = static_cast<std::uint8_t>(bits);
  }
  return tables;
}
constexpr Fp8Tables kFp8 = make_fp8_tables();

struct Simd {
  static constexpr Isa kIsa = Isa::kAvx512;
  static constexpr int kLanes = 16;
  static constexpr int kMaxRows = 4;
  static constexpr int kManyRows = 5;
  static constexpr int kSums = 16;
  static constexpr int kPairedPasses = 2;
  static constexpr int kDotRows = 4;
  static constexpr bool kPaired = true;
  using V = __m512;
  using U = __m512i;

  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  // x0 x1 x0 x1 ...
  static V set2(const float* x) {
    return _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_load_sd(reinterpret_cast<const double*>(x))));
  }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V madd(V a, V b, V c) { return fma(a, b, c); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V rint(V a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static V scale_2n(V p, V n) {
    const U exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }

  static U load_u32(const std::byte* p) { return _mm512_loadu_si512(p); }
  static V low_bf16(U dword) { return _mm512_castsi512_ps(_mm512_slli_epi32(dword, 16)); }
  static V high_bf16(U dword) {
    return _mm512_castsi512_ps(_mm512_and_si512(dword, _mm512_set1_epi32(-65536)));
  }
  static V low_f16(U dword) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dword)); }
  static V high_f16(U dword) { return low_f16(_mm512_srli_epi32(dword, 16)); }

  // 16 rows x 4 codes: two table look-ups give the upper bytes of the F32s, in byte pairs that
  // widen in place.
  //   d[0] = r0k0 r0k2 r1k0 r1k2 | ..., d[1] = k1 k3 of the same rows, d[2], d[3]: rows 2, 3
  static void fp8(const std::byte* p, V d[4]) {
    const U codes = load_u32(p);
    const U hi = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8.hi), codes,
                                          _mm512_load_si512(kFp8.hi + 64));
    const U lo = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8.lo), codes,
                                          _mm512_load_si512(kFp8.lo + 64));
    // hi | (codes & 0x80)
    const U signed_hi = _mm512_ternarylogic_epi32(hi, codes, _mm512_set1_epi8(-128), 0xf8);
    const U rows01 = _mm512_unpacklo_epi8(lo, signed_hi);
    const U rows23 = _mm512_unpackhi_epi8(lo, signed_hi);
    d[0] = low_bf16(rows01);
    d[1] = high_bf16(rows01);
    d[2] = low_bf16(rows23);
    d[3] = high_bf16(rows23);
  }
  // 16 rows x 4 codes: d[k] = column k.
  static void int8(const std::byte* p, V d[4]) {
    const U codes = load_u32(p);
    d[0] = high_byte(_mm512_slli_epi32(codes, 24));
    d[1] = high_byte(_mm512_slli_epi32(codes, 16));
    d[2] = high_byte(_mm512_slli_epi32(codes, 8));
    d[3] = high_byte(codes);
  }
  static V high_byte(U dword) { return _mm512_cvtepi32_ps(_mm512_srai_epi32(dword, 24)); }
  // 16 rows x 8 codes: d[k] = column k. The permutation looks at the low 4 bits of a dword alone.
  static void int4(const std::byte* p, V d[8]) {
    const U codes = load_u32(p);
    const V values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    d[0] = _mm512_permutexvar_ps(codes, values);
    d[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), values);
    d[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 8), values);
    d[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 12), values);
    d[4] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16), values);
    d[5] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 20), values);
    d[6] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 24), values);
    d[7] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 28), values);
  }
  static V pair_even(V a, V b) { return _mm512_shuffle_ps(a, b, 0x88); }
  static V pair_odd(V a, V b) { return _mm512_shuffle_ps(a, b, 0xdd); }

  // Neighbouring codes, by way of F16: its exponent's bias is larger by 8, its subnormals cost
  // nothing.
  static V load_fp8(const std::byte* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i half = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<short>(0xbf80)));
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
  }
  static V load_bf16(const std::uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static U round_bits(V v) {  // BF16 in the upper half, what lies below is noise
    const U bits = _mm512_castps_si512(v);
    const U odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const U rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  }
  static V round_bf16(V v) { return high_bf16(round_bits(v)); }
  static void store_bf16(std::uint16_t* p, V v) {
    const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bits(v), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
  }
  static void store_bf16_pair(std::byte* p, V lo, V hi) {
    const U low = _mm512_srli_epi32(round_bits(lo), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, low, round_bits(hi)));
  }
  static void reduce4(V a, V b, V c, V d, float out[4]) {
    const V ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const V cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const V abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 folded =
        _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out,
                  _mm_add_ps(_mm256_castps256_ps128(folded), _mm256_extractf128_ps(folded, 1)));
  }
};

#include "cpu/kernels-inl.h"

}  // namespace

const Kernels* avx512_kernels() { return &kTable; }

}  // namespace stoker::cpu

#else

const stoker::cpu::Kernels* stoker::cpu::avx512_kernels() { return nullptr; }

#endif
