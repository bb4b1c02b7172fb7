// Rows of an FP8 KV cache, byte for byte: the published form (spec 3.2, 3.5, 3.6 and section 4).
//
//   latent        512 E4M3 codes | 4 F32 scales | 64 BF16   = 656 bytes
//   indexer key   128 E4M3 codes | 1 F32 scale              = 132 bytes
//
// In general `quantised` codes, one scale for every 128 of them (the last group may be partial) and
// `kept` BF16 values (the rotary part), with nothing between them: in rows of odd dimensions scales
// and kept values lie unaligned. Little endian. value = code * scale.
//
// A scale is the smallest power of two that brings its group into 448, of at least 1e-4 / 448: what
// a code stands for is exact in BF16. Indexer keys and queries are rotated first. A group that
// holds an infinity or a NaN becomes NaN as a whole: such a value must not turn into a number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/model/kv_format.h"
#include "quant/fp8.h"

namespace stoker::quant {

// Where a row's parts lie, in bytes. Codes come first.
struct KvRowLayout {
  std::int32_t quantised = 0, kept = 0;  // values
  std::int32_t scales_at = 0, kept_at = 0;
  std::int32_t bytes = 0;
};
STOKER_HD constexpr KvRowLayout kv_row_layout(const KvRow& row) {
  KvRowLayout layout;
  layout.quantised = row.quantised;
  layout.kept = row.kept;
  layout.scales_at = row.quantised;
  layout.kept_at = layout.scales_at + 4 * ((row.quantised + kKvGroup - 1) / kKvGroup);
  layout.bytes = layout.kept_at + 2 * row.kept;
  return layout;
}
static_assert(kv_row_layout({512, 64}).bytes == 656 && kv_row_layout({128, 0}).bytes == 132);
static_assert(kv_matrix(KvFormat::kFp8, {200, 10}).cols == kv_row_layout({200, 10}).bytes);

// ---- Parts of a row, for kernels that share one out among threads. ----

// The scale of a group, from the largest of its values' bits without their signs.
STOKER_HD inline float kv_scale(std::uint32_t largest_bits) {
  if (largest_bits >= 0x7f800000u) return bits_to_f32(0x7fc00000u);
  constexpr float kSmallest = 1e-4f;
  float largest = bits_to_f32(largest_bits);
  largest = largest > kSmallest ? largest : kSmallest;
  const std::uint32_t bits = f32_to_bits(largest * (1.0f / 448.0f));
  std::uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
  // 448 times the next power is no F32.
  constexpr std::uint32_t kLargestExponent = 127 + 119;
  exponent = exponent < kLargestExponent ? exponent : kLargestExponent;
  return bits_to_f32(exponent << 23);
}

// The code of a value in a group of that scale.
STOKER_HD inline std::uint8_t kv_code(float value, float scale) {
  if (scale != scale) return 0x7f;
  return f32_to_fp8(value * (1.0f / scale));  // exact: a power of two
}

// What a value is after it was kept with that scale.
STOKER_HD inline float kv_rounded(float value, float scale) {
  return fp8_to_f32(kv_code(value, scale)) * scale;
}

STOKER_HD inline float kv_scale_at(const KvRowLayout& layout, const std::byte* row, int index) {
  float scale;
  memcpy(&scale, row + layout.scales_at + index / kKvGroup * 4, 4);
  return scale;
}
STOKER_HD inline void set_kv_scale(const KvRowLayout& layout, std::byte* row, int index,
                                   float scale) {
  memcpy(row + layout.scales_at + index / kKvGroup * 4, &scale, 4);
}
STOKER_HD inline void set_kv_kept(const KvRowLayout& layout, std::byte* row, int index,
                                  float value) {
  const bf16 rounded = to_bf16(value);
  memcpy(row + layout.kept_at + 2 * (index - layout.quantised), &rounded, 2);
}
// Value `index` of a row, of the kept ones too.
STOKER_HD inline float kv_value(const KvRowLayout& layout, const std::byte* row, int index) {
  if (index < layout.quantised) {
    return fp8_to_f32(static_cast<std::uint8_t>(row[index])) * kv_scale_at(layout, row, index);
  }
  bf16 kept;
  memcpy(&kept, row + layout.kept_at + 2 * (index - layout.quantised), 2);
  return to_f32(kept);
}

// What a sum of the Hadamard transform of `n` values is multiplied by: 1 / sqrt(n), correctly
// rounded.
STOKER_HD inline float hadamard_factor(int n) {
  float factor = 1.0f;
  for (; n >= 4; n /= 4) factor *= 0.5f;
  return n == 2 ? factor * 0.70710678f : factor;
}

// ---- Whole rows, on the host. ----

// values [row.num_values()]
void encode_kv_row(const KvRow& row, const float* values, std::byte* out);
void decode_kv_row(const KvRow& row, const std::byte* in, float* values);

// The Hadamard transform in natural order over sqrt(n), rounded to BF16. Every sum is of two, with
// partners 1, 2, 4, ... apart: devices that do the same get the same bits. `n` is a power of two.
void rotate_index_vector(float* values, int n);

// An indexer's query as it is multiplied with cached keys: rotated, and rounded as a key is.
void round_index_query(float* values, int n);

}  // namespace stoker::quant
