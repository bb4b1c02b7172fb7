// Norms, activations, rotations, sums and decoding of one row. Part of kernels-inl.h.

static void convert(const void* src, DType src_dtype, void* dst, DType dst_dtype, std::int64_t n) {
  with_type(src_dtype, [&]<typename S>(S*) {
    with_type(dst_dtype, [&]<typename D>(D*) {
      const S* from = static_cast<const S*>(src);
      D* to = static_cast<D*>(dst);
      if constexpr (__is_same(S, D)) {
        __builtin_memmove(to, from, n * sizeof(D));
      } else {
        for (std::int64_t i = 0; i < n; i += kTile) store_at(to, i, n, load_at(from, i, n));
      }
    });
  });
}

static void scale(float* x, float factor, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kTile) {
    store_at(x, i, n, mul16(load_at(x, i, n), set16(factor)));
  }
}

static void silu_mul(const void* gate, const void* up, void* out, DType dtype, std::int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    const T* g = static_cast<const T*>(gate);
    const T* u = static_cast<const T*>(up);
    T* y = static_cast<T*>(out);
    for (std::int64_t i = 0; i < n; i += kTile) {
      const V16 x = load_at(g, i, n);
      const V16 silu = each([&](int s) { return silu_v(x.v[s]); });
      store_at(y, i, n, mul16(silu, load_at(u, i, n)));
    }
  });
}

STOKER_KERNEL float inverse_rms(float sum_of_squares, std::int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

static void rms_norm(const void* x, void* out, DType dtype, const float* weight, float eps,
                     std::int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(out);
    V16 squares = set16(0.0f);
    for (std::int64_t i = 0; i < n; i += kTile) {
      const V16 a = load_at(from, i, n);
      squares = fma16(a, a, squares);
    }
    const V16 factor = set16(inverse_rms(sum16(squares), n, eps));
    for (std::int64_t i = 0; i < n; i += kTile) {
      store_at(to, i, n, mul16(mul16(load_at(from, i, n), factor), load_at(weight, i, n)));
    }
  });
}

static void add_rms_norm(const void* h, void* residual, void* out, DType dtype, bool first,
                         const float* weight, float eps, std::int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    const T* a = static_cast<const T*>(h);
    T* r = static_cast<T*>(residual);
    T* to = static_cast<T*>(out);
    const auto sum_at = [&](std::int64_t i) {
      const V16 x = load_at(a, i, n);
      return first ? x : add16(x, load_at(static_cast<const T*>(r), i, n));
    };
    V16 squares = set16(0.0f);
    for (std::int64_t i = 0; i < n; i += kTile) {
      const V16 s = sum_at(i);
      squares = fma16(s, s, squares);
    }
    const V16 factor = set16(inverse_rms(sum16(squares), n, eps));
    for (std::int64_t i = 0; i < n; i += kTile) {
      const V16 s = sum_at(i);  // before the residual is overwritten: the norm takes it unrounded
      store_at(r, i, n, s);
      store_at(to, i, n, mul16(mul16(s, factor), load_at(weight, i, n)));
    }
  });
}

static void layer_norm(void* x, DType dtype, const float* weight, const float* bias, float eps,
                       std::int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    T* row = static_cast<T*>(x);
    V16 sum = set16(0.0f);
    for (std::int64_t i = 0; i < n; i += kTile) sum = add16(sum, load_at(row, i, n));
    const float mean = sum16(sum) / static_cast<float>(n);
    const auto centred = [&](std::int64_t i) {
      const V16 a = load_at(row, i, n);
      return each([&](int s) { return Simd::sub(a.v[s], Simd::set1(mean)); });
    };
    // The tail's padding must stay out of the variance.
    V16 squares = set16(0.0f);
    std::int64_t i = 0;
    for (; i + kTile <= n; i += kTile) {
      const V16 a = centred(i);
      squares = fma16(a, a, squares);
    }
    if (i < n) {
      float tail[kTile];
      store16(tail, centred(i));
      const V16 a = load_part(static_cast<const float*>(tail), n - i);
      squares = fma16(a, a, squares);
    }
    const V16 factor = set16(inverse_rms(sum16(squares), n, eps));
    for (i = 0; i < n; i += kTile) {
      const V16 y = mul16(mul16(centred(i), factor), load_at(weight, i, n));
      store_at(row, i, n, add16(y, load_at(bias, i, n)));
    }
  });
}

static void rope(void* x, DType dtype, const float* cos, const float* sin, int half,
                 bool interleaved) {
  constexpr int kChunk = 64;  // pairs held at a time
  with_type(dtype, [&]<typename T>(T*) {
    T* row = static_cast<T*>(x);
    const int step = interleaved ? 2 : 1;
    const int partner = interleaved ? 1 : half;
    float a[kChunk], b[kChunk];
    for (int begin = 0; begin < half; begin += kChunk) {
      const int count = half - begin < kChunk ? half - begin : kChunk;
      const auto widen = [](T value) {
        if constexpr (__is_same(T, float)) {
          return value;
        } else {
          const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
          float wide;
          __builtin_memcpy(&wide, &bits, 4);
          return wide;
        }
      };
      for (int i = 0; i < count; ++i) {
        const T* pair = row + (begin + i) * step;
        const float u = widen(pair[0]), v = widen(pair[partner]);
        a[i] = u * cos[begin + i] - v * sin[begin + i];
        b[i] = u * sin[begin + i] + v * cos[begin + i];
      }
      T rounded_a[kChunk], rounded_b[kChunk];
      for (int i = 0; i < count; i += kTile) {
        store16(rounded_a + i, load_part(static_cast<const float*>(a) + i, count - i));
        store16(rounded_b + i, load_part(static_cast<const float*>(b) + i, count - i));
      }
      for (int i = 0; i < count; ++i) {
        T* pair = row + (begin + i) * step;
        pair[0] = rounded_a[i];
        pair[partner] = rounded_b[i];
      }
    }
  });
}

static void combine(const void* parts, std::int64_t part_stride, const std::int32_t* slots,
                    const float* weights, int num_parts, const void* shared, void* out, DType dtype,
                    std::int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    for (std::int64_t i = 0; i < n; i += kTile) {
      V16 y = set16(0.0f);
      for (int p = 0; p < num_parts; ++p) {
        const T* part = static_cast<const T*>(parts) + slots[p] * part_stride;
        y = fma16(load_at(part, i, n), set16(weights[p]), y);
      }
      if (shared != nullptr) y = add16(y, load_at(static_cast<const T*>(shared), i, n));
      store_at(static_cast<T*>(out), i, n, y);
    }
  });
}

static void decode_kv_row(const quant::KvRowLayout& layout, const std::byte* src, float* dst) {
  for (int begin = 0; begin < layout.quantised; begin += kKvGroup) {
    float scale;
    __builtin_memcpy(&scale, src + layout.scales_at + begin / kKvGroup * 4, 4);
    const V16 factor = set16(scale);
    const int left = layout.quantised - begin, count = left < kKvGroup ? left : kKvGroup;
    for (int i = 0; i < count; i += kTile) {
      store_at(dst + begin, i, count, mul16(load_at(src + begin, i, count), factor));
    }
  }
  for (int i = 0; i < layout.kept; i += kTile) {
    const int left = layout.kept - i;
    std::uint16_t values[kTile] = {};  // they may lie unaligned
    __builtin_memcpy(values, src + layout.kept_at + 2 * i, 2 * (left < kTile ? left : kTile));
    store_at(dst + layout.quantised, i, layout.kept,
             load16(static_cast<const std::uint16_t*>(values)));
  }
}
