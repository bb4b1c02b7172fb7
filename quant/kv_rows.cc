#include "quant/kv_rows.h"

#include <algorithm>
#include <bit>

#include "core/base/check.h"

namespace stoker::quant {
namespace {

float group_scale(const float* values, int count) {
  std::uint32_t largest = 0;
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, f32_to_bits(values[i]) & 0x7fffffffu);
  }
  return kv_scale(largest);
}

}  // namespace

void encode_kv_row(const KvRow& row, const float* values, std::byte* out) {
  const KvRowLayout layout = kv_row_layout(row);
  for (int begin = 0; begin < row.quantised; begin += kKvGroup) {
    const int end = std::min(begin + kKvGroup, row.quantised);
    const float scale = group_scale(values + begin, end - begin);
    for (int i = begin; i < end; ++i) out[i] = std::byte{kv_code(values[i], scale)};
    set_kv_scale(layout, out, begin, scale);
  }
  for (int i = row.quantised; i < row.num_values(); ++i) set_kv_kept(layout, out, i, values[i]);
}

void decode_kv_row(const KvRow& row, const std::byte* in, float* values) {
  const KvRowLayout layout = kv_row_layout(row);
  for (int i = 0; i < row.num_values(); ++i) values[i] = kv_value(layout, in, i);
}

void rotate_index_vector(float* values, int n) {
  CHECK(n > 0 && std::has_single_bit(static_cast<unsigned>(n)), "a Hadamard transform of {}", n);
  for (int apart = 1; apart < n; apart *= 2) {
    for (int begin = 0; begin < n; begin += 2 * apart) {
      for (int i = begin; i < begin + apart; ++i) {
        const float a = values[i], b = values[i + apart];
        values[i] = a + b;
        values[i + apart] = a - b;
      }
    }
  }
  const float factor = hadamard_factor(n);
  for (int i = 0; i < n; ++i) values[i] = round_to_bf16(values[i] * factor);
}

void round_index_query(float* values, int n) {
  rotate_index_vector(values, n);
  for (int begin = 0; begin < n; begin += kKvGroup) {
    const int count = std::min(kKvGroup, n - begin);
    const float scale = group_scale(values + begin, count);
    for (int i = begin; i < begin + count; ++i) values[i] = kv_rounded(values[i], scale);
  }
}

}  // namespace stoker::quant
