// Products of many rows with tile16 weights. Part of kernels-inl.h.
//
// Decoding a weight costs as much as a few multiply-adds. So a group of a tile is decoded once, to
// F32 in the nearest cache, and multiplied from there with all rows, a block of rows at a time. The
// four partial sums are walked one after another instead of side by side: a row then needs two
// vectors of sums at a time, and every weight and input that is loaded serves a whole block. The
// order within each sum, and so its bits, are those of tile_dot.

constexpr int kMostGroup = 128;  // inputs that the decoded group has room for
constexpr int kRowChunk = 32;    // rows that share a decoding
constexpr int kRowBlock = Simd::kRowBlock;

// What is multiplied together: two vectors per pass over the inputs. In natural arrangement they
// are the column of one partial sum, of two slices of the rows; in paired arrangement the columns
// of two partial sums, of one slice.
template <typename Format>
struct Unit {
  static constexpr int kPasses = Format::kPaired ? 2 : 4;
  static constexpr int kUnitSlices = Format::kPaired ? 1 : 2;
  static constexpr int kTiles = kUnitSlices > kSlices ? kUnitSlices / kSlices : 1;
  static constexpr int kUnits = kTiles * kSlices / kUnitSlices;  // in kTiles tiles
  static constexpr int kRows = kTiles * kTile;
};

// Decodes a group, from column `begin` on: `dst` is [kPasses, quads, 2, kLanes].
template <typename Format>
STOKER_KERNEL void decode_unit(const TileMatrix& w, std::int64_t tile, std::int64_t last_tile,
                               int unit, std::int64_t begin, std::int64_t num_steps, float* dst) {
  using U = Unit<Format>;
  constexpr int kStepCols = 4 * Format::kQuads;
  const std::int64_t pass_size = num_steps * Format::kQuads * 2 * kLanes;
  for (int v = 0; v < U::kUnitSlices; ++v) {
    const int slice = unit * U::kUnitSlices + v;
    // Where the matrix ends within a unit, its last tile is taken twice and dropped once.
    const std::int64_t at = tile + slice / kSlices < last_tile ? tile + slice / kSlices : last_tile;
    const std::byte* from = w.payload + at * w.tile_bytes + begin / kStepCols * Format::kStepBytes +
                            slice % kSlices * kLanes * 4;
    float* to = dst + v * kLanes;
    for (std::int64_t step = 0; step < num_steps; ++step, from += Format::kStepBytes) {
      V d[kStepCols];
      Format::decode(from, d);
      for (int line = 0; line < Format::kStepBytes; line += 64) {
        __builtin_prefetch(from + line + kPrefetchAhead);
      }
      for (int q = 0; q < Format::kQuads; ++q, to += 2 * kLanes) {
        for (int j = 0; j < 4; ++j) {
          const int pass = Format::kPaired ? j % 2 : j;
          const int vector = Format::kPaired ? j / 2 : 0;
          Simd::store(to + pass * pass_size + vector * kLanes, d[4 * q + j]);
        }
      }
    }
  }
}

// The sums of a decoded group with R rows, in order: sums[r][slice].
template <typename Format, int R>
STOKER_KERNEL void unit_dot(const float* weights, std::int64_t num_quads, const float* const x[R],
                            V sums[R][Unit<Format>::kUnitSlices]) {
  using U = Unit<Format>;
  V parts[U::kPasses][R][2];
  for (int pass = 0; pass < U::kPasses; ++pass) {
    V sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Simd::zero();
    // Rows hold their quads in the order 0 2 1 3.
    const int at = Format::kPaired ? 2 * pass : pass == 1 ? 2 : pass == 2 ? 1 : pass;
    for (std::int64_t quad = 0; quad < num_quads; ++quad, weights += 2 * kLanes) {
      const V first = Simd::load(weights), second = Simd::load(weights + kLanes);
      for (int r = 0; r < R; ++r) {
        V input;
        if constexpr (Format::kPaired) {
          input = Format::Pairs::set2(x[r] + 4 * quad + at);
        } else {
          input = Simd::set1(x[r][4 * quad + at]);
        }
        sum[r][0] = Simd::fma(first, input, sum[r][0]);
        sum[r][1] = Simd::fma(second, input, sum[r][1]);
      }
    }
    for (int r = 0; r < R; ++r) {
      parts[pass][r][0] = sum[r][0];
      parts[pass][r][1] = sum[r][1];
    }
  }
  for (int r = 0; r < R; ++r) {
    if constexpr (Format::kPaired) {
      const V p[4] = {parts[0][r][0], parts[1][r][0], parts[0][r][1], parts[1][r][1]};
      sums[r][0] = close_group<Format>(p);
    } else {
      for (int v = 0; v < 2; ++v) {
        const V p[4] = {parts[0][r][v], parts[1][r][v], parts[2][r][v], parts[3][r][v]};
        sums[r][v] = close_group<Format>(p);
      }
    }
  }
}

// total[row] += scale * sum of a decoded group, for R rows; rows of `total` are kRows apart.
template <typename Format, int R>
static void add_group(const float* weights, std::int64_t num_quads, const float* const* x,
                      std::int64_t begin, const V scales[Unit<Format>::kUnitSlices], float* total) {
  constexpr int kUnitSlices = Unit<Format>::kUnitSlices;
  const float* inputs[R];
  for (int r = 0; r < R; ++r) inputs[r] = x[r] + begin;
  V sums[R][kUnitSlices];
  unit_dot<Format, R>(weights, num_quads, inputs, sums);
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
  alignas(64) float weights[kMostGroup * 2 * kLanes * U::kPasses / 4];
  const std::int64_t last_tile = (w.rows + kTile - 1) / kTile - 1;
  for (int i = 0; i < num_rows * U::kRows; i += kLanes) Simd::store(total + i, Simd::zero());
  for (std::int64_t begin = 0; begin < w.cols; begin += w.group) {
    const std::int64_t end = begin + w.group < w.cols ? begin + w.group : w.cols;
    const std::int64_t num_steps = (end - begin + kStepCols - 1) / kStepCols;
    const std::int64_t num_quads = num_steps * Format::kQuads;
    for (int unit = 0; unit < U::kUnits; ++unit) {
      decode_unit<Format>(w, tile, last_tile, unit, begin, num_steps, weights);
      V scales[U::kUnitSlices];
      for (int v = 0; v < U::kUnitSlices; ++v) {
        const int slice = unit * U::kUnitSlices + v;
        const std::int64_t at =
            tile + slice / kSlices < last_tile ? tile + slice / kSlices : last_tile;
        scales[v] = Format::scale(w, at, begin / w.group, slice % kSlices);
      }
      float* const to = total + unit * U::kUnitSlices * kLanes;
      int row = 0;
      for (; row + kRowBlock <= num_rows; row += kRowBlock) {
        add_group<Format, kRowBlock>(weights, num_quads, x + row, begin, scales,
                                     to + row * U::kRows);
      }
      for (; row + 2 <= num_rows; row += 2) {
        add_group<Format, 2>(weights, num_quads, x + row, begin, scales, to + row * U::kRows);
      }
      for (; row < num_rows; ++row) {
        add_group<Format, 1>(weights, num_quads, x + row, begin, scales, to + row * U::kRows);
      }
    }
  }
}

template <typename Format, typename T>
static void many_rows(const TileProduct& p) {
  using U = Unit<Format>;
  alignas(64) float gate[kRowChunk * U::kRows], up[kRowChunk * U::kRows];
  for (std::int64_t tile = p.tile_begin; tile < p.tile_end; tile += U::kTiles) {
    for (int begin = 0; begin < p.num_rows; begin += kRowChunk) {
      const int num_rows = p.num_rows - begin < kRowChunk ? p.num_rows - begin : kRowChunk;
      const float* x[kRowChunk];
      for (int r = 0; r < num_rows; ++r) x[r] = input_row(p, begin + r);
      unit_rows<Format>(p.w, tile, x, num_rows, gate);
      if (p.up.payload != nullptr) unit_rows<Format>(p.up, tile, x, num_rows, up);
      for (int r = 0; r < num_rows; ++r) {
        for (int t = 0; t < U::kTiles && tile + t < p.tile_end; ++t) {
          const int at = r * U::kRows + t * kTile;
          finish_tile<T>(p, tile + t, begin + r, load16(gate + at),
                         [&] { return load16(up + at); });
        }
      }
    }
  }
}

static void tile_product(const TileProduct& p) {
  const bool many = p.num_rows >= Simd::kManyRows && p.w.group <= kMostGroup;
  with_format(p.w.format, [&](auto format) {
    with_type(p.y_dtype, [&]<typename T>(T*) {
      if (many) {
        many_rows<decltype(format), T>(p);
      } else {
        few_rows<decltype(format), T>(p);
      }
    });
  });
}
