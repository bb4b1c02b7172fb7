// Products of many rows with tile16 weights. Part of kernels-inl.h.
//
// Decoding a weight costs as much as a few multiply-adds. So a group of a tile is decoded once, to
// F32 in the nearest cache, and multiplied from there with all rows, a block of rows at a time. The
// four partial sums are walked one after another instead of side by side: a row then needs two
// vectors of sums at a time, and every weight and input that is loaded serves a whole block. The
// order within each sum, and so its bits, are those of tile_dot.

constexpr int kMostGroup = 128;  // inputs that the decoded group has room for
constexpr int kRowChunk = 32;    // rows that share a decoding
// Floats between the passes of a decoded group. Without it they lie 4 KiB apart, and a load waits
// for every store that agrees with it in the low 12 bits: a third of the speed.
constexpr int kPassGap = 16;

// What is multiplied together: two vectors per pass over the inputs, two passes per half. In
// natural arrangement a half is two of the four partial sums, for two slices of the rows, and a
// pass one of them; in paired arrangement there is one half, of one slice, and a pass is two of the
// sums.
template <typename Format>
struct Unit {
  static constexpr int kHalves = Format::kPaired ? 1 : 2;
  static constexpr int kUnitSlices = Format::kPaired ? 1 : 2;
  static constexpr int kTiles = kUnitSlices > kSlices ? kUnitSlices / kSlices : 1;
  static constexpr int kUnits = kTiles * kSlices / kUnitSlices;  // in kTiles tiles
  static constexpr int kRows = kTiles * kTile;
  // Passes that are walked side by side, and input rows with them, so that Simd::kSums vectors of
  // sums are under way.
  static constexpr int kPassesAtOnce = Format::kPaired ? Simd::kPairedPasses : 1;
  static constexpr int kRowBlock = Simd::kSums / (2 * kPassesAtOnce);
};

// Where a decoded group holds vector `v` of pass `e` of half `h`, for quad 0, and how far the quads
// are apart. Passes that are walked at once lie side by side.
template <typename Format>
constexpr int kQuadSize = 2 * kLanes * Unit<Format>::kPassesAtOnce;
template <typename Format>
STOKER_KERNEL std::int64_t decoded_at(int h, int e, int v, std::int64_t num_quads) {
  constexpr int kAtOnce = Unit<Format>::kPassesAtOnce;
  const int block = 2 * h + e;
  return block / kAtOnce * (num_quads * kQuadSize<Format> + kPassGap) +
         (block % kAtOnce * 2 + v) * kLanes;
}

// Decodes a group, from column `begin` on, to `dst`.
template <typename Format>
STOKER_KERNEL void decode_unit(const TileMatrix& w, std::int64_t tile, int unit, std::int64_t begin,
                               std::int64_t num_steps, float* dst) {
  using U = Unit<Format>;
  constexpr int kStepCols = 4 * Format::kQuads;
  const std::int64_t num_quads = num_steps * Format::kQuads;
  for (int s = 0; s < U::kUnitSlices; ++s) {
    const int slice = unit * U::kUnitSlices + s;
    const std::byte* from = w.payload + (tile + slice / kSlices) * w.tile_bytes +
                            begin / kStepCols * Format::kStepBytes + slice % kSlices * kLanes * 4;
    float* to = dst;
    for (std::int64_t step = 0; step < num_steps; ++step, from += Format::kStepBytes) {
      V d[kStepCols];
      Format::decode(from, d);
      for (int q = 0; q < Format::kQuads; ++q, to += kQuadSize<Format>) {
        for (int j = 0; j < 4; ++j) {
          Simd::store(to + (Format::kPaired ? decoded_at<Format>(0, j % 2, j / 2, num_quads)
                                            : decoded_at<Format>(j / 2, j % 2, s, num_quads)),
                      d[4 * q + j]);
        }
      }
    }
  }
}

// What is fetched while a group is multiplied: the next one, some lines of each tile per half. All
// at once, before decoding, they would be waited for: there are more of them than a core can have
// under way.
struct Ahead {
  const std::byte* next;
  std::int64_t tile_bytes;
  int lines_per_half;
};
template <typename Format>
STOKER_KERNEL void fetch_ahead(Ahead& ahead) {
  for (int line = 0; line < ahead.lines_per_half; ++line, ahead.next += 64) {
    for (int t = 0; t < Unit<Format>::kTiles; ++t) {
      __builtin_prefetch(ahead.next + t * ahead.tile_bytes);
    }
  }
}

// The passes [e, e + kPassesAtOnce) of a half with R rows: sums[r][pass][vector].
template <typename Format, int R>
STOKER_KERNEL void walk(const float* weights, int h, int e, std::int64_t num_quads,
                        const float* const x[R], std::int64_t col,
                        V sums[R][Unit<Format>::kPassesAtOnce][2]) {
  weights += decoded_at<Format>(h, e, 0, num_quads);
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < Unit<Format>::kPassesAtOnce; ++i)
      sums[r][i][0] = sums[r][i][1] = Simd::zero();
  }
#pragma GCC unroll 4
  for (std::int64_t quad = 0; quad < num_quads; ++quad, col += 4, weights += kQuadSize<Format>) {
    for (int i = 0; i < Unit<Format>::kPassesAtOnce; ++i) {
      const V first = Simd::load(weights + 2 * i * kLanes);
      const V second = Simd::load(weights + (2 * i + 1) * kLanes);
      for (int r = 0; r < R; ++r) {
        // Rows hold their quads in the order 0 2 1 3.
        V input;
        if constexpr (Format::kPaired) {
          input = Format::Pairs::set2(x[r] + col + 2 * (e + i));
        } else {
          input = Simd::set1(x[r][col + h + 2 * (e + i)]);
        }
        sums[r][i][0] = Simd::fma(first, input, sums[r][i][0]);
        sums[r][i][1] = Simd::fma(second, input, sums[r][i][1]);
      }
    }
  }
}

// Both passes of a half, added.
template <typename Format, int R>
STOKER_KERNEL void half_sum(const float* weights, int h, std::int64_t num_quads,
                            const float* const x[R], std::int64_t col, V half[R][2]) {
  V even[R][Unit<Format>::kPassesAtOnce][2];
  walk<Format, R>(weights, h, 0, num_quads, x, col, even);
  if constexpr (Unit<Format>::kPassesAtOnce == 2) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < 2; ++v) half[r][v] = Simd::add(even[r][0][v], even[r][1][v]);
    }
  } else {
    V odd[R][1][2];
    walk<Format, R>(weights, h, 1, num_quads, x, col, odd);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < 2; ++v) half[r][v] = Simd::add(even[r][0][v], odd[r][0][v]);
    }
  }
}

// The sums of a decoded group with R rows, in order: sums[r][slice].
template <typename Format, int R>
STOKER_KERNEL void unit_dot(const float* weights, std::int64_t num_quads, const float* const x[R],
                            std::int64_t col, V sums[R][Unit<Format>::kUnitSlices], Ahead& ahead) {
  V half[2][R][2];
#pragma GCC unroll 2
  for (int h = 0; h < Unit<Format>::kHalves; ++h) {
    fetch_ahead<Format>(ahead);
    half_sum<Format, R>(weights, h, num_quads, x, col, half[h]);
  }
  for (int r = 0; r < R; ++r) {
    if constexpr (Format::kPaired) {
      sums[r][0] = Simd::add(Format::Pairs::pair_even(half[0][r][0], half[0][r][1]),
                             Format::Pairs::pair_odd(half[0][r][0], half[0][r][1]));
    } else {
      for (int v = 0; v < 2; ++v) sums[r][v] = Simd::add(half[0][r][v], half[1][r][v]);
    }
  }
}

// total[row] += scale * sum of a decoded group, for R rows; rows of `total` are kRows apart.
template <typename Format, int R>
STOKER_KERNEL void add_group(const float* weights, std::int64_t num_quads, const float* const* x,
                             std::int64_t begin, const V scales[Unit<Format>::kUnitSlices],
                             float* total, Ahead& ahead) {
  constexpr int kUnitSlices = Unit<Format>::kUnitSlices;
  const float* inputs[R];
  for (int r = 0; r < R; ++r) inputs[r] = x[r];
  V sums[R][kUnitSlices];
  unit_dot<Format, R>(weights, num_quads, inputs, begin, sums, ahead);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kUnitSlices; ++v) {
      float* const at = total + r * Unit<Format>::kRows + v * kLanes;
      Simd::store(at, Simd::fma(sums[r][v], scales[v], Simd::load(at)));
    }
  }
}

// total [num_rows, kRows] = x . the rows of Unit::kTiles tiles.
template <typename Format>
static void unit_rows(const TileMatrix& w, std::int64_t tile, const float* const* x, int num_rows,
                      float* total) {
  using U = Unit<Format>;
  constexpr int kStepCols = 4 * Format::kQuads;
  alignas(64) float weights[kMostGroup * kLanes * U::kHalves + 4 * kPassGap];
  const std::int64_t num_halves =
      (num_rows + U::kRowBlock - 1) / U::kRowBlock * U::kHalves * U::kUnits;
  for (int i = 0; i < num_rows * U::kRows; i += kLanes) Simd::store(total + i, Simd::zero());
  for (std::int64_t begin = 0; begin < w.cols; begin += w.group) {
    const std::int64_t end = begin + w.group < w.cols ? begin + w.group : w.cols;
    const std::int64_t num_steps = (end - begin + kStepCols - 1) / kStepCols;
    const std::int64_t num_quads = num_steps * Format::kQuads;
    const std::int64_t group_bytes = num_steps * Format::kStepBytes;
    Ahead ahead{
        w.payload + tile * w.tile_bytes + begin / kStepCols * Format::kStepBytes + group_bytes,
        w.tile_bytes, static_cast<int>((group_bytes / 64 + num_halves - 1) / num_halves)};
    for (int unit = 0; unit < U::kUnits; ++unit) {
      decode_unit<Format>(w, tile, unit, begin, num_steps, weights);
      V scales[U::kUnitSlices];
      for (int v = 0; v < U::kUnitSlices; ++v) {
        const int slice = unit * U::kUnitSlices + v;
        scales[v] = Format::scale(w, tile + slice / kSlices, begin / w.group, slice % kSlices);
      }
      float* const to = total + unit * U::kUnitSlices * kLanes;
      int row = 0;
      const auto add_rows = [&]<int R>() {
        if constexpr (R <= U::kRowBlock) {
          for (; row + R <= num_rows; row += R) {
            add_group<Format, R>(weights, num_quads, x + row, begin, scales, to + row * U::kRows,
                                 ahead);
          }
        }
      };
      add_rows.template operator()<8>();
      add_rows.template operator()<4>();
      add_rows.template operator()<2>();
      add_rows.template operator()<1>();
    }
  }
}

// Whole units of tiles; returns the first tile that is left.
template <typename Format, typename T>
static std::int64_t many_rows(const TileProduct& p) {
  using U = Unit<Format>;
  alignas(64) float gate[kRowChunk * U::kRows], up[kRowChunk * U::kRows];
  std::int64_t tile = p.tile_begin;
  for (; tile + U::kTiles <= p.tile_end; tile += U::kTiles) {
    for (int begin = 0; begin < p.num_rows; begin += kRowChunk) {
      const int num_rows = p.num_rows - begin < kRowChunk ? p.num_rows - begin : kRowChunk;
      const float* x[kRowChunk];
      for (int r = 0; r < num_rows; ++r) x[r] = input_row(p, begin + r);
      unit_rows<Format>(p.w, tile, x, num_rows, gate);
      if (p.up.payload != nullptr) unit_rows<Format>(p.up, tile, x, num_rows, up);
      for (int r = 0; r < num_rows; ++r) {
        for (int t = 0; t < U::kTiles; ++t) {
          const int at = r * U::kRows + t * kTile;
          finish_tile<T>(p, tile + t, begin + r, load16(gate + at),
                         [&] { return load16(up + at); });
        }
      }
    }
  }
  return tile;
}

static void tile_product(const TileProduct& p) {
  const bool many = p.num_rows >= Simd::kManyRows && p.w.group <= kMostGroup;
  with_format(p.w.format, [&](auto format) {
    with_type(p.y_dtype, [&]<typename T>(T*) {
      using Format = decltype(format);
      few_rows<Format, T>(p, many ? many_rows<Format, T>(p) : p.tile_begin);
    });
  });
}
