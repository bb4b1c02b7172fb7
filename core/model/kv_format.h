// How cached rows are kept (spec section 4): the forms, and what a row takes in each.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/model/layer_spec.h"
#include "core/tensor/dtype.h"

namespace stoker {

// kFp8: the published form, byte for byte in quant/kv_rows.h.
enum class KvFormat : std::uint8_t { kBf16, kF32, kFp8 };

constexpr std::string_view kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kBf16:
      return "bf16";
    case KvFormat::kF32:
      return "f32";
    case KvFormat::kFp8:
      return "fp8";
  }
  return "?";
}

inline constexpr int kKvGroup = 128;  // values of an FP8 row that share a scale

// The values of a cached row: those that FP8 quantises, then those that it keeps in BF16.
struct KvRow {
  std::int32_t quantised = 0;
  std::int32_t kept = 0;

  constexpr std::int32_t num_values() const { return quantised + kept; }
  bool operator==(const KvRow&) const = default;
};
constexpr KvRow latent_row(const AttentionDims& dims) { return {dims.latent_dim, dims.rope_dim}; }
constexpr KvRow index_key_row(const IndexerDims& dims) { return {dims.head_dim, 0}; }

// Cached rows as a matrix: a column per value, or per byte (kU8) where a row is FP8.
struct KvMatrix {
  DType dtype = DType::kF32;
  std::int64_t cols = 0;

  constexpr std::int64_t row_bytes() const { return cols * dtype_bytes(dtype); }
};
constexpr KvMatrix kv_matrix(KvFormat format, const KvRow& row) {
  const std::int64_t num_groups = (row.quantised + kKvGroup - 1) / kKvGroup;
  switch (format) {
    case KvFormat::kBf16:
      return {DType::kBf16, row.num_values()};
    case KvFormat::kF32:
      return {DType::kF32, row.num_values()};
    case KvFormat::kFp8:
      return {DType::kU8, row.quantised + 4 * num_groups + 2 * row.kept};
  }
  return {};
}

}  // namespace stoker
