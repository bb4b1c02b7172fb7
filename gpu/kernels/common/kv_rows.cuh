// Cached rows of any form, and what turns values into FP8 rows (quant/kv_rows.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/interface/backend.h"
#include "gpu/kernels/common/reduce.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/kernels/common/unpack.cuh"
#include "quant/kv_rows.h"

namespace stoker::gpu {

// Value `index` of a cached row. The branch is the same for a whole launch.
__device__ inline float load_cached(const KvLayer& cache, std::int64_t row, int index) {
  if (cache.rows.dtype != DType::kU8) return load(cache.rows, row, index);
  const auto* at = static_cast<const std::byte*>(cache.rows.data) + row * cache.rows.row_stride;
  return quant::kv_value(quant::kv_row_layout(cache.row), at, index);
}

// Whether `cache` holds rows of those values.
inline bool holds(const KvLayer& cache, const KvRow& row) {
  if (!cache.is_fp8()) return is_activation(cache.rows) && cache.rows.cols == row.num_values();
  return cache.row == row && cache.rows.cols == quant::kv_row_layout(row).bytes;
}

// Eight codes and their group's scale, a power of two, as BF16: exact.
__device__ inline uint4 widen_codes(uint2 codes, float scale) {
  const __nv_bfloat162 factor = __float2bfloat162_rn(scale);
  unsigned out[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned word = i == 0 ? codes.x : codes.y;
    const BfPair even = fp8_upper_bytes(word << 8), odd = fp8_upper_bytes(word);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const BfPair neighbours = __byte_perm(even, odd, half == 0 ? 0x5410 : 0x7632);
      __nv_bfloat162 values;
      memcpy(&values, &neighbours, 4);
      values = __hmul2(values, factor);
      memcpy(&out[2 * i + half], &values, 4);
    }
  }
  return {out[0], out[1], out[2], out[3]};
}

// quant::rotate_index_vector by `num_threads` threads of which this is number `thread`; `sync`
// makes them see each other's values, before which nobody may still be writing any.
template <typename Sync>
__device__ inline void rotate_shared(float* values, int n, int thread, int num_threads, Sync sync) {
  for (int apart = 1; apart < n; apart *= 2) {
    sync();
    for (int pair = thread; pair < n / 2; pair += num_threads) {
      const int i = pair / apart * 2 * apart + pair % apart;
      const float a = values[i], b = values[i + apart];
      values[i] = a + b;
      values[i + apart] = a - b;
    }
  }
  sync();
  const float factor = quant::hadamard_factor(n);
  for (int i = thread; i < n; i += num_threads) values[i] = round_to_bf16(values[i] * factor);
  sync();
}

// The scale of values [begin, + kKvGroup) of n, found by a warp.
__device__ inline float warp_group_scale(const float* values, int begin, int n, int lane) {
  unsigned largest = 0;
  for (int i = begin + lane; i < min(begin + kKvGroup, n); i += kWarp) {
    largest = max(largest, f32_to_bits(values[i]) & 0x7fffffffu);
  }
  return quant::kv_scale(__reduce_max_sync(kAllLanes, largest));
}

}  // namespace stoker::gpu
