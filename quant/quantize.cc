#include "quant/quantize.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/base/check.h"
#include "quant/tile16.h"

namespace stoker::quant {
namespace {

constexpr int kScalesAtOnce = 16;
constexpr std::uint16_t kLargestBf16 = 0x7f7f;

// x * 2^n, also where 2^n itself is out of range. Exact but for what becomes subnormal.
class PowerOfTwo {
 public:
  explicit PowerOfTwo(int n) : first_(power(n / 2)), second_(power(n - n / 2)) {}
  float operator()(float x) const { return x * first_ * second_; }

 private:
  static float power(int n) { return bits_to_f32(static_cast<std::uint32_t>(127 + n) << 23); }
  float first_, second_;
};

// A group as the search sees it: scaled by a power of two so that the largest magnitude lies in
// [1, 2). That keeps squares in range; what becomes subnormal is 2^-126 of the largest.
struct Group {
  float values[kMaxQuantGroup];
  float magnitudes[kMaxQuantGroup];
  int count;
  float largest;
  int exponent;  // of what was divided out
};

// (x + kRoundMagic) - kRoundMagic is the integer nearest to x, ties to even, for |x| < 2^22.
constexpr float kRoundMagic = 0x1.8p23f;

// errors[i] = squared error of the group under scales[i], in units of scales[i]^2 * 4^exponent.
// Lanes are scales: every sum walks the group in order and nothing is fused (-ffp-contract=off), so
// bits do not depend on the width of the vectors.
using SquaredErrors = void (*)(const float* magnitude, int count, float max_code,
                               const float* scales, float* errors);
template <int kVectorBytes>
[[gnu::always_inline]] inline void squared_errors(const float* magnitude, int count, float max_code,
                                                  const float* scales, float* errors) {
  using Lanes [[gnu::vector_size(kVectorBytes)]] = float;
  constexpr int kLanes = kVectorBytes / sizeof(float);
  constexpr int kVectors = kScalesAtOnce / kLanes;
  Lanes inverse[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    Lanes scale;
    std::memcpy(&scale, scales + v * kLanes, sizeof scale);
    inverse[v] = 1.0f / scale;
    sum[v] = Lanes{};
  }
  const Lanes magic = Lanes{} + kRoundMagic;
  const Lanes limit = Lanes{} + max_code;
  for (int i = 0; i < count; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      const Lanes x = magnitude[i] * inverse[v];
      const Lanes clipped = x < limit ? x : limit;
      const Lanes miss = x - ((clipped + magic) - magic);
      sum[v] += miss * miss;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    std::memcpy(errors + v * kLanes, &sum[v], sizeof sum[v]);
  }
}

// The time of packing is spent here.
#ifdef __x86_64__
[[gnu::target("avx512f")]] void squared_errors_avx512(const float* magnitude, int count,
                                                      float max_code, const float* scales,
                                                      float* errors) {
  squared_errors<64>(magnitude, count, max_code, scales, errors);
}
[[gnu::target("avx2")]] void squared_errors_avx2(const float* magnitude, int count, float max_code,
                                                 const float* scales, float* errors) {
  squared_errors<32>(magnitude, count, max_code, scales, errors);
}
#endif
SquaredErrors best_squared_errors() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return squared_errors_avx512;
  if (__builtin_cpu_supports("avx2")) return squared_errors_avx2;
#endif
  return squared_errors<16>;
}

float bf16_value(int bits) { return to_f32(bf16{static_cast<std::uint16_t>(bits)}); }

// Searches the scales of one group.
class ScaleSearch {
 public:
  ScaleSearch(const Group& group, int max_code)
      : group_(group), max_code_(max_code), normalise_(-group.exponent) {}

  bf16 run() {
    const int top = unclipped();
    bool more = true;
    for (int bits = top; more && bits > 0; bits -= kScalesAtOnce) {
      more = try_scales(bits - kScalesAtOnce + 1);
    }
    try_scales(top + 1);
    return bf16{static_cast<std::uint16_t>(best_bits_)};
  }

 private:
  // Bits of the least BF16 value s with largest <= max_code * s. In double, where that is exact.
  int unclipped() const {
    const double largest = std::ldexp(static_cast<double>(group_.largest), group_.exponent);
    int bits = static_cast<int>(f32_to_bits(static_cast<float>(largest / max_code_)) >> 16);
    while (static_cast<double>(bf16_value(bits)) * max_code_ < largest) ++bits;
    return bits;
  }

  // Tries kScalesAtOnce values from `lowest` up. False where smaller ones cannot win any more.
  bool try_scales(int lowest) {
    static const SquaredErrors squared_errors = best_squared_errors();
    float scales[kScalesAtOnce], errors[kScalesAtOnce];
    for (int i = 0; i < kScalesAtOnce; ++i) {
      scales[i] = normalise_(bf16_value(std::clamp<int>(lowest + i, 1, kLargestBf16)));
    }
    squared_errors(group_.magnitudes, group_.count, static_cast<float>(max_code_), scales, errors);
    float least = INFINITY;
    for (int i = 0; i < kScalesAtOnce; ++i) {
      errors[i] *= scales[i] * scales[i];
      least = std::min(least, errors[i]);
    }
    if (least < best_error_) {
      best_error_ = least;
      int i = kScalesAtOnce - 1;
      while (errors[i] != least) --i;
      best_bits_ = std::clamp<int>(lowest + i, 1, kLargestBf16);
    }
    const float clipped =
        std::max(0.0f, group_.largest - static_cast<float>(max_code_) * scales[0]);
    return clipped * clipped <= best_error_;
  }

  const Group& group_;
  int max_code_;
  PowerOfTwo normalise_;
  float best_error_ = INFINITY;
  int best_bits_ = 1;
};

std::array<float, 256> make_fp8_values() {
  std::array<float, 256> values;
  for (int code = 0; code < 256; ++code) values[code] = fp8_to_f32(static_cast<std::uint8_t>(code));
  return values;
}

}  // namespace

bf16 quantize_group(const float* values, int count, int max_code, std::int8_t* codes) {
  CHECK(count >= 0 && count <= kMaxQuantGroup, "a group of {}", count);
  float largest = 0.0f;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  if (largest == 0.0f) {
    std::fill_n(codes, count, std::int8_t{0});
    return bf16{0};
  }
  // 1. The group in range.
  Group group;
  group.count = count;
  group.exponent = std::ilogb(largest);
  const PowerOfTwo normalise(-group.exponent);
  group.largest = normalise(largest);
  for (int i = 0; i < count; ++i) {
    group.values[i] = normalise(values[i]);
    group.magnitudes[i] = std::fabs(group.values[i]);
  }
  // 2. Its scale.
  const bf16 scale = ScaleSearch(group, max_code).run();
  // 3. Its codes.
  const float unit = normalise(to_f32(scale));
  const auto limit = static_cast<float>(max_code);
  for (int i = 0; i < count; ++i) {
    const float clipped = std::min(std::max(group.values[i] / unit, -limit), limit);
    codes[i] = static_cast<std::int8_t>((clipped + kRoundMagic) - kRoundMagic);
  }
  return scale;
}

void dequantize_row(const QuantView& src, std::int64_t row, float* dst) {
  CHECK(src.layout == WeightLayout::kRowMajor && !src.spec.is_integer(), "{} to dequantise",
        quant_spec_name(src.spec));
  if (src.spec.format == QuantFormat::kF8E4m3B128) {
    static const std::array<float, 256> kValues = make_fp8_values();
    const std::byte* const codes = src.payload + row * src.cols;
    for (std::int64_t begin = 0; begin < src.cols; begin += 128) {
      const float scale = scale_at(src, row, begin);
      const std::int64_t end = std::min(begin + 128, src.cols);
      for (std::int64_t col = begin; col < end; ++col) {
        dst[col] = kValues[static_cast<std::size_t>(codes[col])] * scale;
      }
    }
  } else {
    for (std::int64_t col = 0; col < src.cols; ++col) dst[col] = element_at(src, row, col);
  }
  for (std::int64_t col = 0; col < src.cols; ++col) {
    dst[col] = std::min(std::max(dst[col], -FLT_MAX), FLT_MAX);
  }
}

void quantize_tile16(const QuantView& src, std::int64_t row_begin, std::int64_t num_rows,
                     const QuantSpec& spec, std::byte* payload, std::byte* scales) {
  CHECK(spec.is_integer() && spec.group > 0 && spec.group % 8 == 0 && spec.group <= kMaxQuantGroup,
        "quantising to {}", quant_spec_name(spec));
  CHECK(row_begin + num_rows <= src.rows, "rows [{}, {}) of {}", row_begin, row_begin + num_rows,
        src.rows);
  const Tile16 tile{num_rows, src.cols, spec};
  const int per_turn = tile.cols_per_turn();
  const unsigned mask = spec.format == QuantFormat::kInt4 ? 0xfu : 0xffu;
  std::vector<float> values(static_cast<std::size_t>(src.cols));
  std::vector<std::int8_t> codes(static_cast<std::size_t>(tile.padded_cols()), 0);
  if (num_rows % kTileRows != 0) {  // padding rows
    std::memset(payload, 0, static_cast<std::size_t>(tile.payload_bytes()));
    std::memset(scales, 0, static_cast<std::size_t>(tile.scale_bytes()));
  }
  for (std::int64_t row = 0; row < num_rows; ++row) {
    dequantize_row(src, row_begin + row, values.data());
    for (std::int64_t col = 0; col < src.cols; col += spec.group) {
      const auto count = static_cast<int>(std::min<std::int64_t>(spec.group, src.cols - col));
      const bf16 scale =
          quantize_group(values.data() + col, count, spec.max_code(), codes.data() + col);
      std::memcpy(scales + tile.scale_index(row, col) * 2, &scale, 2);
    }
    for (std::int64_t turn = 0; turn < tile.num_turns(); ++turn) {
      std::uint32_t dword = 0;
      for (int i = 0; i < per_turn; ++i) {
        const auto code =
            static_cast<std::uint8_t>(codes[static_cast<std::size_t>(turn * per_turn + i)]);
        dword |= (code & mask) << (i * (32 / per_turn));
      }
      std::memcpy(payload + tile.dword_offset(row, turn * per_turn), &dword, 4);
    }
  }
}

}  // namespace stoker::quant
