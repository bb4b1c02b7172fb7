// Blocks of attention and of the indexer, all F32. Part of kernels-inl.h.

template <int Q, int K>
static void dot_cell(const float* q, std::int64_t q_stride, const float* k, std::int64_t k_stride,
                     std::int64_t dim, float* out, std::int64_t out_stride) {
  V acc[Q][K];
  for (int i = 0; i < Q; ++i) {
    for (int j = 0; j < K; ++j) acc[i][j] = Simd::zero();
  }
  for (std::int64_t d = 0; d < dim; d += kLanes) {
    V keys[K];
    for (int j = 0; j < K; ++j) keys[j] = Simd::load(k + j * k_stride + d);
    for (int i = 0; i < Q; ++i) {
      const V query = Simd::load(q + i * q_stride + d);
      for (int j = 0; j < K; ++j) acc[i][j] = Simd::madd(query, keys[j], acc[i][j]);
    }
  }
  for (int i = 0; i < Q; ++i) {
    float sums[4];
    // A lone key fills the vector with itself, so that it is summed as it is among others.
    Simd::reduce4(acc[i][0], acc[i][K > 1 ? 1 : 0], acc[i][K > 2 ? 2 : 0], acc[i][K > 3 ? 3 : 0],
                  sums);
    for (int j = 0; j < K; ++j) out[i * out_stride + j] = sums[j];
  }
}

template <int Q>
static void dot_rows(const float* q, std::int64_t q_stride, const float* k, std::int64_t k_stride,
                     int num_k, std::int64_t dim, float* out, std::int64_t out_stride) {
  int j = 0;
  for (; j + 4 <= num_k; j += 4) {
    dot_cell<Q, 4>(q, q_stride, k + j * k_stride, k_stride, dim, out + j, out_stride);
  }
  for (; j < num_k; ++j) {
    dot_cell<Q, 1>(q, q_stride, k + j * k_stride, k_stride, dim, out + j, out_stride);
  }
}

static void dot_block(const float* q, std::int64_t q_stride, int num_q, const float* k,
                      std::int64_t k_stride, int num_k, std::int64_t dim, float* out,
                      std::int64_t out_stride) {
  constexpr int kRows = Simd::kDotRows;
  int i = 0;
  for (; i + kRows <= num_q; i += kRows) {
    dot_rows<kRows>(q + i * q_stride, q_stride, k, k_stride, num_k, dim, out + i * out_stride,
                    out_stride);
  }
  for (; i < num_q; ++i) {
    dot_rows<1>(q + i * q_stride, q_stride, k, k_stride, num_k, dim, out + i * out_stride,
                out_stride);
  }
}

template <int P, int D>
static void weigh_cell(const float* p, std::int64_t p_stride, const float* v, std::int64_t v_stride,
                       int num_v, float* acc, std::int64_t acc_stride) {
  V sum[P][D];
  for (int i = 0; i < P; ++i) {
    for (int d = 0; d < D; ++d) sum[i][d] = Simd::load(acc + i * acc_stride + d * kLanes);
  }
  for (int j = 0; j < num_v; ++j) {
    V value[D];
    for (int d = 0; d < D; ++d) value[d] = Simd::load(v + j * v_stride + d * kLanes);
    for (int i = 0; i < P; ++i) {
      const V weight = Simd::set1(p[i * p_stride + j]);
      for (int d = 0; d < D; ++d) sum[i][d] = Simd::madd(weight, value[d], sum[i][d]);
    }
  }
  for (int i = 0; i < P; ++i) {
    for (int d = 0; d < D; ++d) Simd::store(acc + i * acc_stride + d * kLanes, sum[i][d]);
  }
}

template <int P>
static void weigh_rows(const float* p, std::int64_t p_stride, const float* v, std::int64_t v_stride,
                       int num_v, std::int64_t dim, float* acc, std::int64_t acc_stride) {
  std::int64_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    weigh_cell<P, 4>(p, p_stride, v + d, v_stride, num_v, acc + d, acc_stride);
  }
  for (; d < dim; d += kLanes) {
    weigh_cell<P, 1>(p, p_stride, v + d, v_stride, num_v, acc + d, acc_stride);
  }
}

static void add_weighted(const float* p, std::int64_t p_stride, int num_p, const float* v,
                         std::int64_t v_stride, int num_v, std::int64_t dim, float* acc,
                         std::int64_t acc_stride) {
  constexpr int kRows = Simd::kDotRows;
  int i = 0;
  for (; i + kRows <= num_p; i += kRows) {
    weigh_rows<kRows>(p + i * p_stride, p_stride, v, v_stride, num_v, dim, acc + i * acc_stride,
                      acc_stride);
  }
  for (; i < num_p; ++i) {
    weigh_rows<1>(p + i * p_stride, p_stride, v, v_stride, num_v, dim, acc + i * acc_stride,
                  acc_stride);
  }
}

static float softmax(float* s, float scale, std::int64_t n) {
  constexpr float kLowest = -__builtin_inff();
  const V16 factor = set16(scale);
  V16 best = set16(kLowest);
  for (std::int64_t i = 0; i < n; i += kTile) {
    // The tail is padded with its own first value.
    const V16 x = n - i >= kTile ? load16(s + i) : load_part(s + i, n - i, s[i]);
    best = each([&](int k) { return Simd::max(best.v[k], Simd::mul(x.v[k], factor.v[k])); });
  }
  float lanes[kTile];
  store16(lanes, best);
  float max = lanes[0];
  for (int j = 1; j < kTile; ++j) max = lanes[j] > max ? lanes[j] : max;
  const V minus_max = Simd::set1(-max);
  V16 sum = set16(0.0f);
  for (std::int64_t i = 0; i < n; i += kTile) {
    V16 x = mul16(load_at(static_cast<const float*>(s), i, n), factor);
    x = each([&](int k) { return exp_v(Simd::add(x.v[k], minus_max)); });
    store_at(s, i, n, x);
    // Reading back leaves the tail's padding out of the sum.
    sum = add16(sum, load_at(static_cast<const float*>(s), i, n));
  }
  return sum16(sum);
}

static void relu_weigh(const float* s, std::int64_t s_stride, int num_i, const float* w, int num_j,
                       float* out) {
  for (int j = 0; j < num_j; j += kTile) {
    V16 sum = set16(0.0f);
    for (int i = 0; i < num_i; ++i) {
      const V16 x = load_at(s + i * s_stride, j, num_j);
      const V weight = Simd::set1(w[i]);
      sum = each(
          [&](int k) { return Simd::madd(Simd::max(x.v[k], Simd::zero()), weight, sum.v[k]); });
    }
    store_at(out, j, num_j, sum);
  }
}
