// What this instruction set's multiply-adds could give: the measure for tile_product with many
// rows. Part of kernels-inl.h.

// Independent sums: enough to cover the latency of two units, few enough for 16 registers.
constexpr int kPeakSums = 12;

static std::int64_t fma_peak(std::int64_t rounds, float seed, float* out) {
  V sums[kPeakSums];
  for (int i = 0; i < kPeakSums; ++i) sums[i] = Simd::set1(seed * static_cast<float>(i + 1));
  const V factor = Simd::set1(0.75f), term = Simd::set1(seed);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kPeakSums; ++i) sums[i] = Simd::fma(sums[i], factor, term);
  }
  V total = sums[0];
  for (int i = 1; i < kPeakSums; ++i) total = Simd::add(total, sums[i]);
  Simd::store(out, total);
  return rounds * kPeakSums * kLanes;
}
