// Products with tile16 weights. Part of kernels-inl.h.
//
// A quad is the 4 columns of the four partial sums; a step is one quad, or two (INT4), of 16 rows.
// A format decodes a step into four vectors per quad and slice of the rows, in one of two
// arrangements: natural, d[j] = column j of kLanes rows; or paired (FP8 where Simd::kPaired), d[0]
// = columns 0 2 0 2 ... of rows 0 0 1 1 | 4 4 5 5 ..., d[1] = columns 1 3, d[2] and d[3] the same
// of rows 2 2 3 3 | .... Sums are kept in the same arrangement and put in order once per group.

constexpr std::int64_t kPrefetchAhead = 4096;  // bytes

// The scales of slice `s` of a tile and group.
struct NoScales {
  STOKER_KERNEL V scale(const TileMatrix&, std::int64_t, std::int64_t, int) {
    return Simd::set1(1.0f);
  }
};
struct TileScales {
  STOKER_KERNEL V scale(const TileMatrix& w, std::int64_t tile, std::int64_t group, int) {
    const std::int64_t num_groups = (w.cols + w.group - 1) / w.group;
    return Simd::set1(reinterpret_cast<const float*>(w.scales)[tile * num_groups + group]);
  }
};
struct RowScales {
  STOKER_KERNEL V scale(const TileMatrix& w, std::int64_t tile, std::int64_t group, int s) {
    const std::int64_t num_groups = (w.cols + w.group - 1) / w.group;
    const auto* const scales = reinterpret_cast<const std::uint16_t*>(w.scales);
    return Simd::load_bf16(scales + (tile * num_groups + group) * kTile + s * kLanes);
  }
};

struct Fp8Format : TileScales {
  using Pairs = Simd;  // a dependent name for what only some instruction sets have
  static constexpr int kQuads = 1;
  static constexpr int kStepBytes = 64;
  static constexpr bool kPaired = Simd::kPaired;
  STOKER_KERNEL void decode(const std::byte* p, V d[4]) { Simd::fp8(p, d); }
};
struct Int8Format : RowScales {
  static constexpr int kQuads = 1;
  static constexpr int kStepBytes = 64;
  static constexpr bool kPaired = false;
  STOKER_KERNEL void decode(const std::byte* p, V d[4]) { Simd::int8(p, d); }
};
struct Int4Format : RowScales {
  static constexpr int kQuads = 2;
  static constexpr int kStepBytes = 64;
  static constexpr bool kPaired = false;
  STOKER_KERNEL void decode(const std::byte* p, V d[8]) { Simd::int4(p, d); }
};
struct Bf16Format : NoScales {
  static constexpr int kQuads = 1;
  static constexpr int kStepBytes = 128;
  static constexpr bool kPaired = false;
  STOKER_KERNEL void decode(const std::byte* p, V d[4]) {
    const U a = Simd::load_u32(p), b = Simd::load_u32(p + 64);
    d[0] = Simd::low_bf16(a);
    d[1] = Simd::high_bf16(a);
    d[2] = Simd::low_bf16(b);
    d[3] = Simd::high_bf16(b);
  }
};
struct F16Format : NoScales {
  static constexpr int kQuads = 1;
  static constexpr int kStepBytes = 128;
  static constexpr bool kPaired = false;
  STOKER_KERNEL void decode(const std::byte* p, V d[4]) {
    const U a = Simd::load_u32(p), b = Simd::load_u32(p + 64);
    d[0] = Simd::low_f16(a);
    d[1] = Simd::high_f16(a);
    d[2] = Simd::low_f16(b);
    d[3] = Simd::high_f16(b);
  }
};
struct F32Format : NoScales {
  static constexpr int kQuads = 1;
  static constexpr int kStepBytes = 256;
  static constexpr bool kPaired = false;
  STOKER_KERNEL void decode(const std::byte* p, V d[4]) {
    for (int j = 0; j < 4; ++j) d[j] = Simd::load(reinterpret_cast<const float*>(p + 64 * j));
  }
};

template <typename F>
STOKER_KERNEL void with_format(QuantFormat format, F f) {
  switch (format) {
    case QuantFormat::kF32:
      return f(F32Format{});
    case QuantFormat::kF16:
      return f(F16Format{});
    case QuantFormat::kBf16:
      return f(Bf16Format{});
    case QuantFormat::kF8E4m3B128:
      return f(Fp8Format{});
    case QuantFormat::kInt8:
      return f(Int8Format{});
    case QuantFormat::kInt4:
      return f(Int4Format{});
  }
}

// p += d * x for one quad, x in the order 0 2 1 3.
template <typename Format>
STOKER_KERNEL void accumulate(V p[4], const V d[4], const float* x) {
  if constexpr (Format::kPaired) {
    const V even = Format::Pairs::set2(x), odd = Format::Pairs::set2(x + 2);
    p[0] = Simd::fma(d[0], even, p[0]);
    p[1] = Simd::fma(d[1], odd, p[1]);
    p[2] = Simd::fma(d[2], even, p[2]);
    p[3] = Simd::fma(d[3], odd, p[3]);
  } else {
    p[0] = Simd::fma(d[0], Simd::set1(x[0]), p[0]);
    p[1] = Simd::fma(d[1], Simd::set1(x[2]), p[1]);
    p[2] = Simd::fma(d[2], Simd::set1(x[1]), p[2]);
    p[3] = Simd::fma(d[3], Simd::set1(x[3]), p[3]);
  }
}

// (p0 + p1) + (p2 + p3), rows in order.
template <typename Format>
STOKER_KERNEL V close_group(const V p[4]) {
  const V a = Simd::add(p[0], p[1]), b = Simd::add(p[2], p[3]);
  if constexpr (Format::kPaired) {
    return Simd::add(Format::Pairs::pair_even(a, b), Format::Pairs::pair_odd(a, b));
  } else {
    return Simd::add(a, b);
  }
}

// total[r] = x[r] . the 16 rows of `tile`.
template <typename Format, int R>
STOKER_KERNEL void tile_dot(const TileMatrix& w, std::int64_t tile, const float* const x[R],
                            V16 total[R]) {
  const std::byte* at = w.payload + tile * w.tile_bytes;
  const std::int64_t num_groups = (w.cols + w.group - 1) / w.group;
  for (int r = 0; r < R; ++r) total[r] = set16(0.0f);
  for (std::int64_t g = 0; g < num_groups; ++g) {
    const std::int64_t begin = g * w.group;
    const std::int64_t end = begin + w.group < w.cols ? begin + w.group : w.cols;
    constexpr int kStepCols = 4 * Format::kQuads;
    const std::int64_t num_steps = (end - begin + kStepCols - 1) / kStepCols;
    for (int s = 0; s < kSlices; ++s) {
      const V scale = Format::scale(w, tile, g, s);
      V p[R][4];
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < 4; ++j) p[r][j] = Simd::zero();
      }
      const std::byte* from = at + s * kLanes * 4;
      for (std::int64_t step = 0; step < num_steps; ++step, from += Format::kStepBytes) {
        V d[kStepCols];
        Format::decode(from, d);
        if (s == 0) {
          for (int line = 0; line < Format::kStepBytes; line += 64) {
            __builtin_prefetch(from + line + kPrefetchAhead);
          }
        }
        for (int q = 0; q < Format::kQuads; ++q) {
          const std::int64_t col = begin + kStepCols * step + 4 * q;
          for (int r = 0; r < R; ++r) accumulate<Format>(p[r], d + 4 * q, x[r] + col);
        }
      }
      for (int r = 0; r < R; ++r) {
        total[r].v[s] = Simd::fma(close_group<Format>(p[r]), scale, total[r].v[s]);
      }
    }
    at += num_steps * Format::kStepBytes;
  }
}

STOKER_KERNEL const float* input_row(const TileProduct& p, int row) {
  return p.x + (p.x_rows != nullptr ? p.x_rows[row] : row) * p.x_stride;
}

// Stores what a tile gives for a row: `total`, gated by up() where there is an up.
template <typename T, typename Up>
STOKER_KERNEL void finish_tile(const TileProduct& p, std::int64_t tile, int row, V16 total, Up up) {
  if (p.up.payload != nullptr) {
    const V16 gate = rounded16(total, static_cast<T*>(nullptr));
    const V16 silu = each([&](int s) { return silu_v(gate.v[s]); });
    total = mul16(silu, rounded16(up(), static_cast<T*>(nullptr)));
  }
  T* y = static_cast<T*>(p.y) + (p.y_rows != nullptr ? p.y_rows[row] : row) * p.y_stride;
  store_at(y, tile * kTile, p.w.rows, total);
}

template <typename Format, typename T, int R>
static void tile_rows(const TileProduct& p, std::int64_t tile, int row) {
  const float* x[R];
  for (int r = 0; r < R; ++r) x[r] = input_row(p, row + r);
  V16 total[R], up[R];
  tile_dot<Format, R>(p.w, tile, x, total);
  if (p.up.payload != nullptr) tile_dot<Format, R>(p.up, tile, x, up);
  for (int r = 0; r < R; ++r) finish_tile<T>(p, tile, row + r, total[r], [&] { return up[r]; });
}

template <typename Format, typename T>
static void few_rows(const TileProduct& p, std::int64_t tile_begin) {
  for (std::int64_t tile = tile_begin; tile < p.tile_end; ++tile) {
    int row = 0;
    if constexpr (Simd::kMaxRows >= 4) {
      for (; row + 4 <= p.num_rows; row += 4) tile_rows<Format, T, 4>(p, tile, row);
    }
    if constexpr (Simd::kMaxRows >= 2) {
      for (; row + 2 <= p.num_rows; row += 2) tile_rows<Format, T, 2>(p, tile, row);
    }
    for (; row < p.num_rows; ++row) tile_rows<Format, T, 1>(p, tile, row);
  }
}

// d in natural arrangement.
template <typename Format>
STOKER_KERNEL void decode_natural(const std::byte* p, V d[4 * Format::kQuads]) {
  Format::decode(p, d);
  if constexpr (Format::kPaired) {
    const V k0 = Format::Pairs::pair_even(d[0], d[2]), k2 = Format::Pairs::pair_odd(d[0], d[2]);
    const V k1 = Format::Pairs::pair_even(d[1], d[3]), k3 = Format::Pairs::pair_odd(d[1], d[3]);
    d[0] = k0;
    d[1] = k1;
    d[2] = k2;
    d[3] = k3;
  }
}

STOKER_KERNEL void put_panel(const V d[4], std::int64_t col, std::int64_t cols, int lane,
                             float* dst) {
  for (int j = 0; j < 4 && col + j < cols; ++j) {
    Simd::store(dst + (col + j) * kPanelCols + lane, d[j]);
  }
}
STOKER_KERNEL void put_panel(const V d[4], std::int64_t col, std::int64_t, int lane,
                             std::uint16_t* dst) {
  std::byte* at = reinterpret_cast<std::byte*>(dst) + (col / 2 * kPanelCols + lane) * 4;
  Simd::store_bf16_pair(at, d[0], d[1]);
  Simd::store_bf16_pair(at + kPanelCols * 4, d[2], d[3]);
}

template <typename Format, typename T>
static void decode_tile(const TileMatrix& w, std::int64_t tile, int lane, T* dst) {
  constexpr int kStepCols = 4 * Format::kQuads;
  const std::byte* at = w.payload + tile * w.tile_bytes;
  for (std::int64_t begin = 0, g = 0; begin < w.cols; begin += w.group, ++g) {
    const std::int64_t end = begin + w.group < w.cols ? begin + w.group : w.cols;
    const std::int64_t num_steps = (end - begin + kStepCols - 1) / kStepCols;
    for (int s = 0; s < kSlices; ++s) {
      const V scale = Format::scale(w, tile, g, s);
      const std::byte* from = at + s * kLanes * 4;
      for (std::int64_t step = 0; step < num_steps; ++step, from += Format::kStepBytes) {
        V d[kStepCols];
        decode_natural<Format>(from, d);
        if (s == 0) {
          for (int line = 0; line < Format::kStepBytes; line += 64)
            __builtin_prefetch(from + line + kPrefetchAhead);
        }
        for (int q = 0; q < Format::kQuads; ++q) {
          const std::int64_t col = begin + kStepCols * step + 4 * q;
          for (int j = 0; j < 4; ++j) d[4 * q + j] = Simd::mul(d[4 * q + j], scale);
          put_panel(d + 4 * q, col, w.cols, lane + s * kLanes, dst);
        }
      }
    }
    at += num_steps * Format::kStepBytes;
  }
}

static void decode_panel(const TileMatrix& w, std::int64_t tile_begin, DType dtype, void* dst) {
  const std::int64_t num_tiles = (w.rows + kTile - 1) / kTile;
  const bool pairs = dtype == DType::kBf16;
  const std::int64_t padded_cols =
      (w.cols + kPanelDepthAlign - 1) / kPanelDepthAlign * kPanelDepthAlign;
  const std::int64_t decoded_cols = (w.cols + 3) / 4 * 4;
  if (num_tiles - tile_begin < kPanelCols / kTile) {
    __builtin_memset(dst, 0, (pairs ? padded_cols * 2 : w.cols * 4) * kPanelCols);
  } else if (pairs) {
    __builtin_memset(static_cast<std::byte*>(dst) + decoded_cols * 2 * kPanelCols, 0,
                     (padded_cols - decoded_cols) * 2 * kPanelCols);
  }
  with_format(w.format, [&](auto format) {
    with_type(dtype, [&]<typename T>(T*) {
      for (int t = 0; t < kPanelCols / kTile && tile_begin + t < num_tiles; ++t) {
        decode_tile<decltype(format)>(w, tile_begin + t, t * kTile, static_cast<T*>(dst));
      }
    });
  });
}

static void prepare_row(const void* src, DType dtype, std::int64_t cols, float* dst) {
  with_type(dtype, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(src);
    for (std::int64_t i = 0; i < cols; i += kTile) {
      float x[kTile];
      store16(x, load_at(from, i, cols));
      const std::int64_t padded = (cols - i + kInputAlign - 1) / kInputAlign * kInputAlign;
      for (int j = 0; j < kTile && j < padded; j += 4) {
        dst[i + j] = x[j];
        dst[i + j + 1] = x[j + 2];
        dst[i + j + 2] = x[j + 1];
        dst[i + j + 3] = x[j + 3];
      }
    }
  });
}
