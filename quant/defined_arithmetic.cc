#include "quant/defined_arithmetic.h"

#include <algorithm>

namespace stoker::quant {

float dot_defined(const QuantView& w, std::int64_t row, const float* x) {
  float acc = 0.0f;
  for (std::int64_t begin = 0; begin < w.cols; begin += w.spec.group) {
    const std::int64_t end = std::min(begin + w.spec.group, w.cols);
    float partial[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (std::int64_t k = begin; k < end; ++k) {
      partial[k % 4] = fma_defined(element_at(w, row, k), x[k], partial[k % 4]);
    }
    // Padding columns: fma(0, 0, p) changes p only from -0 to +0.
    for (std::int64_t k = end; k % 4 != 0; ++k)
      partial[k % 4] = fma_defined(0.0f, 0.0f, partial[k % 4]);
    const float sum = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    acc = fma_defined(sum, scale_at(w, row, begin), acc);
  }
  return acc;
}

}  // namespace stoker::quant
