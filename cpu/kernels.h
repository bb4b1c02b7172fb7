// The kernels: one generic body (kernels-inl.h) compiled once per instruction set, reached through
// a table of function pointers.
//
// tile_product, silu and combine are the defined arithmetic (quant/defined_arithmetic.h) and give
// the same bits on every instruction set; so do the norms and conversions, whose sums walk 16
// partial sums everywhere. The blocks of attention (dot_block, add_weighted) sum in the order of
// the vector width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor/dtype.h"
#include "core/tensor/quant_view.h"
#include "cpu/isa.h"
#include "quant/kv_rows.h"

namespace stoker::cpu {

// A matrix in tile16 layout (quant/tile16.h), measured out for a kernel.
struct TileMatrix {
  const std::byte* payload = nullptr;
  const std::byte* scales = nullptr;  // as quant/tile16.h says, or null
  QuantFormat format = QuantFormat::kF32;
  std::int64_t rows = 0, cols = 0;
  std::int64_t group = 0;
  std::int64_t tile_bytes = 0;
};
TileMatrix tile_matrix(const QuantView& view);

// y[r] = x[r] . W^T for tiles [tile_begin, tile_end) of W, in the defined arithmetic. With `up`:
// y[r] = silu(x[r] . W^T) * (x[r] . up^T), gate and up rounded as y is.
struct TileProduct {
  TileMatrix w{};
  TileMatrix up{};                       // payload null: none
  const float* x = nullptr;              // rows from prepare_row
  std::int64_t x_stride = 0;             // floats
  const std::int32_t* x_rows = nullptr;  // which rows of x; null: 0, 1, ...
  void* y = nullptr;
  DType y_dtype = DType::kF32;           // kF32 or kBf16
  std::int64_t y_stride = 0;             // elements
  const std::int32_t* y_rows = nullptr;  // as x_rows
  int num_rows = 0;
  std::int64_t tile_begin = 0, tile_end = 0;
};

inline constexpr int kPanelCols = 64;        // outputs of a panel: four tiles
inline constexpr int kPanelDepthAlign = 32;  // a BF16 panel's inputs are padded to a multiple
inline constexpr int kLaneAlign = 16;        // dims and strides of attention's F32 rows
inline constexpr int kInputAlign = 8;        // inputs of a row for tile_product

// Distance, in floats, at which rows for tile_product should lie. The sizes of models are multiples
// of 1024, which would put the same group of every row on the same sets of a cache.
constexpr std::int64_t input_stride(std::int64_t cols) {
  constexpr std::int64_t kSets = 1024, kApart = 144;
  const std::int64_t stride = (cols + 15) / 16 * 16;
  return stride + (stride % kSets < kApart ? kApart - stride % kSets : 0);
}

// Dtypes are kF32 or kBf16.
struct Kernels {
  Isa isa;

  // F32 row for TileProduct::x: columns in quads in the order 0 2 1 3, zero-padded to a multiple
  // of kInputAlign, which `dst` takes.
  void (*prepare_row)(const void* src, DType dtype, std::int64_t cols, float* dst);
  void (*tile_product)(const TileProduct& p);

  // Decodes tiles [tile_begin, + 4) into a panel for matrix multiplication, scales applied; what
  // lies outside the matrix is zero.
  //   kF32:  [cols, 64]
  //   kBf16: [ceil(cols / 32) * 16, 64, 2]: pairs of inputs side by side, one rounding
  void (*decode_panel)(const TileMatrix& w, std::int64_t tile_begin, DType dtype, void* dst);

  void (*convert)(const void* src, DType src_dtype, void* dst, DType dst_dtype, std::int64_t n);
  void (*scale)(float* x, float factor, std::int64_t n);
  void (*silu_mul)(const void* gate, const void* up, void* out, DType dtype, std::int64_t n);
  void (*rms_norm)(const void* x, void* out, DType dtype, const float* weight, float eps,
                   std::int64_t n);
  void (*add_rms_norm)(const void* h, void* residual, void* out, DType dtype, bool first,
                       const float* weight, float eps, std::int64_t n);
  void (*layer_norm)(void* x, DType dtype, const float* weight, const float* bias, float eps,
                     std::int64_t n);
  // Rotates one head's `2 * half` values; `cos` and `sin` are [half].
  void (*rope)(void* x, DType dtype, const float* cos, const float* sin, int half,
               bool interleaved);
  // out = round(sum_i weights[i] * parts[slots[i]] (+ shared))   parts [.., part_stride]
  void (*combine)(const void* parts, std::int64_t part_stride, const std::int32_t* slots,
                  const float* weights, int num_parts, const void* shared, void* out, DType dtype,
                  std::int64_t n);

  // A row of an FP8 cache as F32; its codes hold no NaN, its scales may.
  void (*decode_kv_row)(const quant::KvRowLayout& layout, const std::byte* src, float* dst);

  // Attention. All F32; `dim` and row strides are multiples of kLaneAlign, padding is zero.
  // out[i][j] = q[i] . k[j]
  void (*dot_block)(const float* q, std::int64_t q_stride, int num_q, const float* k,
                    std::int64_t k_stride, int num_k, std::int64_t dim, float* out,
                    std::int64_t out_stride);
  // acc[i] += sum_j p[i][j] * v[j], j ascending
  void (*add_weighted)(const float* p, std::int64_t p_stride, int num_p, const float* v,
                       std::int64_t v_stride, int num_v, std::int64_t dim, float* acc,
                       std::int64_t acc_stride);
  // s = exp(s * scale - max); returns the sum.
  float (*softmax)(float* s, float scale, std::int64_t n);
  // out[j] = sum_i relu(s[i][j]) * w[i], i ascending
  void (*relu_weigh)(const float* s, std::int64_t s_stride, int num_i, const float* w, int num_j,
                     float* out);

  // Nothing but F32 fused multiply-adds, for measuring their peak: returns how many there were.
  // `out` takes 16 floats, which depend on all of them.
  std::int64_t (*fma_peak)(std::int64_t rounds, float seed, float* out);
};

// The kernels that `isa` runs: its own, or the next lower that were compiled.
const Kernels& kernels_for(Isa isa);

// Null where the compiler's target has no such instructions.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace stoker::cpu
