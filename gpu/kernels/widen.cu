#include "gpu/error.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/unpack.cuh"
#include "gpu/launch.h"
#include "gpu/native.h"

namespace stoker::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kColsPerThread = 8;

// A thread takes 8 columns of a tile, so that it reads whole 64-byte turns and a warp writes 512
// neighbouring bytes of each row.
template <QuantFormat kFormat>
__global__ void __launch_bounds__(kThreads) widen(WidenParams p) {
  const quant::Tile16 tile{p.weight.rows, p.weight.cols, p.weight.spec};
  const std::int64_t col = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kColsPerThread;
  if (col >= p.weight.cols) return;
  const std::int64_t first_row = p.row_begin + std::int64_t{blockIdx.y} * quant::kTileRows;
  float scale = 1.0f;  // one for the tile: 16 divides the rows that share one
  if constexpr (QuantSpec{kFormat}.has_scales()) {
    scale = quant::decode_scale(kFormat, p.weight.scales, tile.scale_index(first_row, col));
  }
  constexpr int kWords = kWordsPerEight<kFormat>;
  const auto* at =
      reinterpret_cast<const uint4*>(p.weight.payload + tile.dword_offset(first_row, col));
#pragma unroll
  for (int quad = 0; quad < quant::kTileRows / 4; ++quad) {
    uint4 turns[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) turns[w] = __ldg(at + w * 4 + quad);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const std::int64_t row = first_row - p.row_begin + quad * 4 + r;
      if (row >= p.num_rows) return;
      BfPair out[kColsPerThread / 2];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const unsigned word = r == 0   ? turns[w].x
                              : r == 1 ? turns[w].y
                              : r == 2 ? turns[w].z
                                       : turns[w].w;
        float values[kPerWord<kFormat>];
        unpack<kFormat>(word, values);
#pragma unroll
        for (int c = 0; c < kPerWord<kFormat>; c += 2) {
          out[(w * kPerWord<kFormat> + c) / 2] =
              pack_bf16(__fmul_rn(values[c], scale), __fmul_rn(values[c + 1], scale));
        }
      }
      *reinterpret_cast<uint4*>(p.out + row * p.weight.cols + col) = {out[0], out[1], out[2],
                                                                      out[3]};
    }
  }
}

}  // namespace

Status launch_widen(const WidenParams& params, const Stream& stream) {
  const WidenParams& p = params;
  const QuantFormat format = p.weight.spec.format;
  CHECK(p.weight.layout == WeightLayout::kTile16 && p.weight.device != kHost &&
            (format == QuantFormat::kF8E4m3B128 || format == QuantFormat::kBf16),
        "widening {}", quant_format_name(format));
  CHECK(p.row_begin % quant::kTileRows == 0 && p.row_begin + p.num_rows <= p.weight.rows &&
            p.weight.cols % kColsPerThread == 0,
        "rows [{}, + {}) of [{}, {}]", p.row_begin, p.num_rows, p.weight.rows, p.weight.cols);
  if (p.num_rows == 0) return {};
  const dim3 grid(blocks_for(p.weight.cols, kThreads * kColsPerThread),
                  blocks_for(p.num_rows, quant::kTileRows));
  if (format == QuantFormat::kBf16) {
    widen<QuantFormat::kBf16><<<grid, kThreads, 0, native(stream)>>>(p);
  } else {
    widen<QuantFormat::kF8E4m3B128><<<grid, kThreads, 0, native(stream)>>>(p);
  }
  return launch_status("widening a weight");
}

}  // namespace stoker::gpu
