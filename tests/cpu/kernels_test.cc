// Every instruction set's kernels against the scalar definitions in quant.
#include "cpu/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "quant/defined_arithmetic.h"
#include "tests/cpu/random_matrix.h"

namespace stoker::cpu {
namespace {

std::string isa_label(const ::testing::TestParamInfo<Isa>& info) {
  return std::string(isa_name(info.param));
}

class KernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  const Kernels& kernels = kernels_for(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Isas, KernelsTest, ::testing::ValuesIn(available_isas()), isa_label);

constexpr QuantSpec kSpecs[] = {{QuantFormat::kF32, 128},  {QuantFormat::kF16, 128},
                                {QuantFormat::kBf16, 128}, {QuantFormat::kF8E4m3B128, 128},
                                {QuantFormat::kInt8, 128}, {QuantFormat::kInt4, 32},
                                {QuantFormat::kInt4, 64},  {QuantFormat::kInt4, 128}};

struct Shape {
  std::int64_t rows, cols;
};
constexpr Shape kShapes[] = {{16, 128}, {1, 1},    {17, 130}, {17, 133},
                             {40, 260}, {128, 67}, {200, 515}};

// Rows of x as prepare_row lays them out.
std::vector<float> prepared(const Kernels& kernels, const std::vector<float>& x,
                            std::int64_t cols) {
  const std::int64_t padded = (cols + 7) / 8 * 8;
  const std::int64_t num_rows = static_cast<std::int64_t>(x.size()) / cols;
  std::vector<float> out(num_rows * padded, NAN);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    kernels.prepare_row(x.data() + r * cols, DType::kF32, cols, out.data() + r * padded);
  }
  return out;
}

TEST_P(KernelsTest, DecodeKvRowIsTheLayouts) {
  std::mt19937 random(41);
  for (const KvRow row : {KvRow{512, 64}, {128, 0}, {32, 0}, {37, 5}, {301, 9}, {1, 1}}) {
    const quant::KvRowLayout layout = quant::kv_row_layout(row);
    std::vector<std::byte> bytes(layout.bytes);
    for (std::byte& byte : bytes) {
      const auto code = static_cast<std::uint8_t>(random());
      byte = std::byte{(code & 0x7f) == 0x7f ? std::uint8_t{1} : code};  // no NaN
    }
    for (int i = 0; i < row.quantised; i += kKvGroup) {
      quant::set_kv_scale(layout, bytes.data(), i, std::ldexp(1.0f, -22 + i / 3));
    }
    for (int i = row.quantised; i < row.num_values(); ++i) {
      quant::set_kv_kept(layout, bytes.data(), i, static_cast<float>(i) * 0.37f);
    }
    std::vector<float> expected(row.num_values()), got(row.num_values() + 1, -1.0f);
    quant::decode_kv_row(row, bytes.data(), expected.data());
    kernels.decode_kv_row(layout, bytes.data(), got.data());
    for (int i = 0; i < row.num_values(); ++i) {
      ASSERT_EQ(f32_to_bits(got[i]), f32_to_bits(expected[i])) << row.quantised << " at " << i;
    }
    EXPECT_EQ(got.back(), -1.0f);
    quant::set_kv_scale(layout, bytes.data(), 0, NAN);
    kernels.decode_kv_row(layout, bytes.data(), got.data());
    EXPECT_TRUE(std::isnan(got[0]));
  }
}

TEST_P(KernelsTest, TileProductIsTheDefinedDot) {
  std::mt19937 random(1);
  for (const QuantSpec& spec : kSpecs) {
    for (const Shape shape : kShapes) {
      const RandomMatrix w(shape.rows, shape.cols, spec, random);
      for (const int num_rows : {1, 2, 3, 4, 5, 7, 16, 37}) {
        const std::vector<float> x = random_floats(num_rows * shape.cols, random);
        const std::vector<float> rows = prepared(kernels, x, shape.cols);
        std::vector<float> y(num_rows * shape.rows, NAN);
        TileProduct p{.w = tile_matrix(w.tiled()),
                      .x = rows.data(),
                      .x_stride = (shape.cols + 7) / 8 * 8,
                      .y = y.data(),
                      .y_stride = shape.rows,
                      .num_rows = num_rows,
                      .tile_end = (shape.rows + 15) / 16};
        kernels.tile_product(p);
        for (int r = 0; r < num_rows; ++r) {
          for (std::int64_t n = 0; n < shape.rows; ++n) {
            const float expected = quant::dot_defined(w.definition(), n, &x[r * shape.cols]);
            ASSERT_EQ(f32_to_bits(expected), f32_to_bits(y[r * shape.rows + n]))
                << quant_spec_name(spec) << " " << shape.rows << "x" << shape.cols << " row " << r
                << " of " << num_rows << ", output " << n;
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, EveryFp8CodeDecodes) {
  // One column of ones picks the code of each row.
  for (int first = 0; first < 256; first += 16) {
    for (std::int64_t col = 0; col < 4; ++col) {
      std::vector<std::uint8_t> codes(16 * 4);
      for (int r = 0; r < 16; ++r) codes[r * 4 + col] = static_cast<std::uint8_t>(first + r);
      const float scale = 1.0f;
      const TileMatrix w{.payload = reinterpret_cast<const std::byte*>(codes.data()),
                         .scales = reinterpret_cast<const std::byte*>(&scale),
                         .format = QuantFormat::kF8E4m3B128,
                         .rows = 16,
                         .cols = 4,
                         .group = 128,
                         .tile_bytes = 64};
      const std::vector<float> x = prepared(kernels, {1, 1, 1, 1}, 4);
      float y[16];
      kernels.tile_product({.w = w,
                            .up = {},
                            .x = x.data(),
                            .x_stride = 4,
                            .x_rows = nullptr,
                            .y = y,
                            .y_dtype = DType::kF32,
                            .y_stride = 16,
                            .y_rows = nullptr,
                            .num_rows = 1,
                            .tile_begin = 0,
                            .tile_end = 1});
      for (int r = 0; r < 16; ++r) {
        const int code = first + r;
        if ((code & 0x7f) == 0x7f) continue;  // NaN: refused when a weight is adopted
        EXPECT_EQ(y[r], quant::fp8_to_f32(static_cast<std::uint8_t>(code))) << "code " << code;
      }
    }
  }
}

TEST_P(KernelsTest, GateUpIsTheDefinedExpert) {
  std::mt19937 random(2);
  const std::int64_t inter = 40, hidden = 260;
  for (const QuantSpec& spec : kSpecs) {
    SCOPED_TRACE(quant_spec_name(spec));
    const RandomMatrix gate(inter, hidden, spec, random), up(inter, hidden, spec, random);
    const std::vector<float> x = random_floats(7 * hidden, random);
    const std::vector<float> rows = prepared(kernels, x, hidden);
    const std::int32_t x_rows[] = {3, 0, 4, 6, 2}, y_rows[] = {1, 2, 0, 4, 3};
    std::vector<bf16> rounded(5 * inter);
    std::vector<float> exact(5 * inter);
    TileProduct p{.w = tile_matrix(gate.tiled()),
                  .up = tile_matrix(up.tiled()),
                  .x = rows.data(),
                  .x_stride = 264,
                  .x_rows = x_rows,
                  .y = exact.data(),
                  .y_stride = inter,
                  .y_rows = y_rows,
                  .num_rows = 5,
                  .tile_end = 3};
    kernels.tile_product(p);
    p.y = rounded.data();
    p.y_dtype = DType::kBf16;
    kernels.tile_product(p);
    for (int r = 0; r < 5; ++r) {
      for (std::int64_t n = 0; n < inter; ++n) {
        const float g = quant::dot_defined(gate.definition(), n, &x[x_rows[r] * hidden]);
        const float u = quant::dot_defined(up.definition(), n, &x[x_rows[r] * hidden]);
        EXPECT_EQ(exact[y_rows[r] * inter + n], quant::silu_defined(g) * u);
        const float h = quant::silu_defined(round_to_bf16(g)) * round_to_bf16(u);
        EXPECT_EQ(rounded[y_rows[r] * inter + n].bits, to_bf16(h).bits);
      }
    }
  }
}

TEST_P(KernelsTest, SiluIsTheDefinedOne) {
  std::mt19937 random(3);
  std::vector<float> g = random_floats(1003, random), up(g.size(), 1.0f), y(g.size());
  const float special[] = {0.0f,     -0.0f,     100.0f, -100.0f, 1e-40f,
                           INFINITY, -INFINITY, 88.0f,  -87.5f};
  std::copy(std::begin(special), std::end(special), g.begin());
  kernels.silu_mul(g.data(), up.data(), y.data(), DType::kF32, g.size());
  for (std::size_t i = 0; i < g.size(); ++i) {
    EXPECT_EQ(f32_to_bits(quant::silu_defined(g[i])), f32_to_bits(y[i])) << g[i];
  }
}

TEST_P(KernelsTest, ConvertRoundsToNearestEven) {
  std::mt19937 random(4);
  std::vector<float> x(4099);
  for (float& value : x) value = bits_to_f32(random());
  x[0] = bits_to_f32(0x7f800001u);  // a NaN whose upper half looks infinite
  std::vector<bf16> narrow(x.size());
  std::vector<float> wide(x.size());
  kernels.convert(x.data(), DType::kF32, narrow.data(), DType::kBf16, x.size());
  kernels.convert(narrow.data(), DType::kBf16, wide.data(), DType::kF32, x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(narrow[i].bits, to_bf16(x[i]).bits) << f32_to_bits(x[i]);
    ASSERT_EQ(f32_to_bits(wide[i]), f32_to_bits(to_f32(narrow[i])));
  }
}

TEST_P(KernelsTest, PanelHoldsTheScaledWeights) {
  std::mt19937 random(5);
  for (const QuantSpec& spec : kSpecs) {
    for (const Shape shape : kShapes) {
      const RandomMatrix w(shape.rows, shape.cols, spec, random);
      const std::int64_t depth = (shape.cols + 31) / 32 * 32;
      for (std::int64_t tile = 0; tile < (shape.rows + 15) / 16; tile += 4) {
        std::vector<float> wide(shape.cols * kPanelCols, NAN);
        std::vector<bf16> narrow(depth * kPanelCols, bf16{0x7fc0});
        kernels.decode_panel(tile_matrix(w.tiled()), tile, DType::kF32, wide.data());
        kernels.decode_panel(tile_matrix(w.tiled()), tile, DType::kBf16, narrow.data());
        for (std::int64_t k = 0; k < depth; ++k) {
          for (int n = 0; n < kPanelCols; ++n) {
            const std::int64_t row = tile * 16 + n;
            const bool inside = row < shape.rows && k < shape.cols;
            const float expected = inside ? quant::element_at(w.definition(), row, k) *
                                                quant::scale_at(w.definition(), row, k)
                                          : 0.0f;
            if (k < shape.cols) {
              ASSERT_EQ(wide[k * kPanelCols + n], expected);
            }
            ASSERT_EQ(narrow[(k / 2 * kPanelCols + n) * 2 + k % 2].bits, to_bf16(expected).bits)
                << quant_spec_name(spec) << " " << k << "," << n;
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, NormsAreNearTheirDoubleFormsAndTheSameOnEveryIsa) {
  std::mt19937 random(6);
  for (const std::int64_t n : {1, 5, 16, 33, 512, 1537}) {
    const std::vector<float> x = random_floats(n, random), h = random_floats(n, random),
                             w = random_floats(n, random), b = random_floats(n, random);
    double squares = 0, mean = 0, sum_squares = 0, variance = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      squares += double{x[i]} * x[i];
      mean += x[i];
      const double s = double{x[i]} + h[i];
      sum_squares += s * s;
    }
    mean /= n;
    for (std::int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    std::vector<float> rms(n), sum(n), layer = x, residual = x;
    kernels.rms_norm(x.data(), rms.data(), DType::kF32, w.data(), 1e-6f, n);
    kernels.add_rms_norm(h.data(), residual.data(), sum.data(), DType::kF32, false, w.data(), 1e-6f,
                         n);
    kernels.layer_norm(layer.data(), DType::kF32, w.data(), b.data(), 1e-6f, n);
    for (std::int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(rms[i], x[i] / std::sqrt(squares / n + 1e-6) * w[i], 2e-5);
      EXPECT_EQ(residual[i], h[i] + x[i]);
      EXPECT_NEAR(sum[i], (x[i] + h[i]) / std::sqrt(sum_squares / n + 1e-6) * w[i], 2e-5);
      EXPECT_NEAR(layer[i], (x[i] - mean) / std::sqrt(variance / n + 1e-6) * w[i] + b[i], 1e-4);
    }
    std::vector<float> scalar(n), scalar_layer = x;
    scalar_kernels()->rms_norm(x.data(), scalar.data(), DType::kF32, w.data(), 1e-6f, n);
    scalar_kernels()->layer_norm(scalar_layer.data(), DType::kF32, w.data(), b.data(), 1e-6f, n);
    EXPECT_EQ(rms, scalar);
    EXPECT_EQ(layer, scalar_layer);
  }
}

TEST_P(KernelsTest, RopeRotatesThePairsOfItsStyle) {
  std::mt19937 random(7);
  for (const int half : {1, 4, 32, 70}) {
    const std::vector<float> x = random_floats(2 * half, random), cos = random_floats(half, random),
                             sin = random_floats(half, random);
    for (const bool interleaved : {true, false}) {
      std::vector<float> y = x;
      kernels.rope(y.data(), DType::kF32, cos.data(), sin.data(), half, interleaved);
      for (int i = 0; i < half; ++i) {
        const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
        EXPECT_NEAR(y[a], x[a] * cos[i] - x[b] * sin[i], 1e-6f);
        EXPECT_NEAR(y[b], x[a] * sin[i] + x[b] * cos[i], 1e-6f);
      }
    }
  }
}

TEST_P(KernelsTest, CombineAddsInOrder) {
  std::mt19937 random(8);
  const std::int64_t n = 37;
  const std::vector<float> parts = random_floats(4 * n, random), shared = random_floats(n, random);
  const std::int32_t slots[] = {2, 0, 3};
  const float weights[] = {0.3f, 1.7f, 0.01f};
  std::vector<float> y(n);
  kernels.combine(parts.data(), n, slots, weights, 3, shared.data(), y.data(), DType::kF32, n);
  for (std::int64_t i = 0; i < n; ++i) {
    float expected = 0.0f;
    for (int p = 0; p < 3; ++p) {
      expected = quant::fma_defined(parts[slots[p] * n + i], weights[p], expected);
    }
    EXPECT_EQ(y[i], expected + shared[i]);
  }
}

TEST_P(KernelsTest, AttentionBlocks) {
  std::mt19937 random(9);
  const int num_q = 7, num_k = 13;
  const std::int64_t dim = 80;
  const std::vector<float> q = random_floats(num_q * dim, random),
                           k = random_floats(num_k * dim, random);
  std::vector<float> s(num_q * 16, NAN), acc(num_q * dim, 0.5f);
  kernels.dot_block(q.data(), dim, num_q, k.data(), dim, num_k, dim, s.data(), 16);
  kernels.add_weighted(s.data(), 16, num_q, k.data(), dim, num_k, dim, acc.data(), dim);
  for (int i = 0; i < num_q; ++i) {
    for (int j = 0; j < num_k; ++j) {
      double dot = 0;
      for (int d = 0; d < dim; ++d) dot += double{q[i * dim + d]} * k[j * dim + d];
      EXPECT_NEAR(s[i * 16 + j], dot, 1e-4);
      float alone = 0;  // in a block of its own: the same bits
      kernels.dot_block(&q[i * dim], dim, 1, &k[j * dim], dim, 1, dim, &alone, 1);
      EXPECT_EQ(alone, s[i * 16 + j]);
    }
    for (int d = 0; d < dim; ++d) {
      double sum = 0.5;
      for (int j = 0; j < num_k; ++j) sum += double{s[i * 16 + j]} * k[j * dim + d];
      EXPECT_NEAR(acc[i * dim + d], sum, 1e-3);
    }
  }
}

TEST_P(KernelsTest, SoftmaxAndReluWeigh) {
  std::mt19937 random(10);
  for (const int n : {1, 3, 16, 31, 200}) {
    std::vector<float> s = random_floats(n, random), p = s;
    const float sum = kernels.softmax(p.data(), 3.0f, n);
    double max = -1e30, expected_sum = 0;
    for (const float x : s) max = std::max(max, 3.0 * x);
    for (int i = 0; i < n; ++i) {
      expected_sum += std::exp(3.0 * s[i] - max);
      EXPECT_NEAR(p[i], std::exp(3.0 * s[i] - max), 1e-5);
    }
    EXPECT_NEAR(sum, expected_sum, 1e-4 * n);

    const std::vector<float> rows = random_floats(5 * n, random), w = random_floats(5, random);
    std::vector<float> out(n);
    kernels.relu_weigh(rows.data(), n, 5, w.data(), n, out.data());
    for (int j = 0; j < n; ++j) {
      double expected = 0;
      for (int i = 0; i < 5; ++i) expected += std::max(0.0f, rows[i * n + j]) * double{w[i]};
      EXPECT_NEAR(out[j], expected, 1e-5);
    }
  }
}

}  // namespace
}  // namespace stoker::cpu
