// Products: in the defined arithmetic bit for bit what quant says they are, on tensor cores as near
// as sums of F32 are, and the same for a row whatever stands beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gpu/kernels/common/linear_places.h"
#include "quant/defined_arithmetic.h"
#include "tests/gpu/cuda_test.h"
#include "tests/gpu/expert_matrices.h"

namespace stoker {
namespace {

class CudaProducts : public CudaTest {
 protected:
  static bool same_bits(const Values& a, const Values& b) {
    return a.data.size() == b.data.size() &&
           std::memcmp(a.data.data(), b.data.data(), a.data.size() * sizeof(float)) == 0;
  }

  bool on_tensor_cores(QuantFormat format) const {
    return activation == DType::kBf16 &&
           (format == QuantFormat::kF8E4m3B128 || format == QuantFormat::kBf16);
  }

  // That `actual` is w . x but for the rounding of F32 sums.
  static void expect_dot(const QuantView& w, std::int64_t row, const float* x, float actual,
                         const std::string& where, double tolerance = 0x1p-20) {
    double dot = 0.0, size = 0.0;
    for (std::int64_t k = 0; k < w.cols; ++k) {
      const double weight =
          double{quant::element_at(w, row, k)} * double{quant::scale_at(w, row, k)};
      dot += weight * double{x[k]};
      size += std::abs(weight * double{x[k]});
    }
    EXPECT_NEAR(dot, actual, tolerance * size + 1e-30) << where;
  }
};

TEST_P(CudaProducts, LinearOnTensorCores) {
  struct Shape {
    std::int64_t rows, cols;
    int output_step;  // every so manieth output is compared
  };
  // Whole and partial tiles, pairs of tiles, groups and segments; blocks that share an output's
  // columns, and (the last) that have them to themselves.
  const Shape shapes[] = {{16, 128, 1},   {48, 512, 1},      {33, 130, 1},    {1, 5, 1},
                          {100, 1002, 1}, {24, 8460, 1},     {576, 2048, 37}, {65, 1025, 1},
                          {40, 4097, 1},  {17000, 1100, 997}};
  Random random(7);
  for (const QuantFormat format : {QuantFormat::kF8E4m3B128, QuantFormat::kBf16}) {
    if (!on_tensor_cores(format)) GTEST_SKIP() << "BF16 inputs only";
    for (const Shape& shape : shapes) {
      const HostMatrix host = random.matrix(format, shape.rows, shape.cols);
      const WeightPtr weight = adopt(host);
      constexpr int kMost = 33;
      const Values x = random.values(kMost, shape.cols, activation);
      const Tensor device_x = upload(x, activation);
      Values all;
      for (const int num_rows : {kMost, 1, 2, 7, 8, 9, 15, 16, 17}) {
        SCOPED_TRACE(fmt::format("{} [{}, {}] x {}", quant_format_name(format), shape.rows,
                                 shape.cols, num_rows));
        const TestStep step({{num_rows, num_rows}});
        begin(step);
        const Tensor y = empty(DType::kF32, num_rows, shape.rows);
        const Tensor stored = empty(activation, num_rows, shape.rows);
        const TensorView inputs = device_x.view().row_slice(kMost - num_rows, num_rows);
        backend->linear(step.view, *weight, inputs, y.view());
        backend->linear(step.view, *weight, inputs, stored.view());
        const Values got = download(y.view()), got_stored = download(stored.view());
        if (num_rows == kMost) all = got;
        for (std::int64_t t = 0; t < num_rows; ++t) {
          for (std::int64_t r = 0; r < shape.rows; r += shape.output_step) {
            const std::string where = fmt::format("row {} output {}", t, r);
            const std::int64_t row = kMost - num_rows + t;
            if (num_rows == kMost) {
              expect_dot(host.view, r, x.row(row), got.at(t, r), where);
            } else {
              expect_same_bits(all.at(row, r), got.at(t, r), where);
            }
            expect_same_bits(as_stored(activation, got.at(t, r)), got_stored.at(t, r), where);
          }
        }
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(CudaProducts, LinearIsTheDefinedDot) {
  struct Shape {
    std::int64_t rows, cols;
  };
  // Whole and partial tiles and groups, one group, more groups than a block sums at once.
  const Shape shapes[] = {{16, 128}, {48, 512}, {33, 130}, {1, 5}, {100, 1002}, {24, 8460}};
  Random random(1);
  for (const QuantFormat format :
       {QuantFormat::kF8E4m3B128, QuantFormat::kBf16, QuantFormat::kF16, QuantFormat::kF32}) {
    if (on_tensor_cores(format)) continue;
    for (const Shape& shape : shapes) {
      const HostMatrix host = random.matrix(format, shape.rows, shape.cols);
      const WeightPtr weight = adopt(host);
      for (const int num_rows : {1, 2, 6}) {
        SCOPED_TRACE(fmt::format("{} [{}, {}] x {}", quant_format_name(format), shape.rows,
                                 shape.cols, num_rows));
        const TestStep step({{num_rows, num_rows}});
        begin(step);
        Values x = random.values(num_rows, shape.cols, activation);
        x.at(0, 0) = as_stored(activation, -1e-39f);
        const Tensor device_x = upload(x, activation);
        const Tensor y = empty(DType::kF32, num_rows, shape.rows);
        const Tensor stored = empty(activation, num_rows, shape.rows);
        backend->linear(step.view, *weight, device_x.view(), y.view());
        backend->linear(step.view, *weight, device_x.view(), stored.view());
        const Values got = download(y.view()), got_stored = download(stored.view());
        for (std::int64_t t = 0; t < num_rows; ++t) {
          for (std::int64_t r = 0; r < shape.rows; ++r) {
            const float expected = quant::dot_defined(host.view, r, x.row(t));
            expect_same_bits(expected, got.at(t, r), fmt::format("row {} output {}", t, r));
            expect_same_bits(as_stored(activation, expected), got_stored.at(t, r), "stored");
          }
        }
        if (HasFailure()) return;
      }
    }
  }
}

// Rows of prefill are the same in every chunk, and leave those of decode beside them as they were.
TEST_P(CudaProducts, LinearOfPrefillRows) {
  struct Shape {
    std::int64_t rows, cols;
  };
  constexpr int kRows = 200;
  Random random(8);
  for (const QuantFormat format : {QuantFormat::kF8E4m3B128, QuantFormat::kBf16}) {
    for (const Shape& shape : {Shape{576, 1024}, Shape{40, 264}, Shape{33, 130}}) {
      SCOPED_TRACE(fmt::format("{} [{}, {}]", quant_format_name(format), shape.rows, shape.cols));
      const HostMatrix host = random.matrix(format, shape.rows, shape.cols);
      const WeightPtr weight = adopt(host);
      const Values x = random.values(kRows, shape.cols, activation);
      const Tensor device_x = upload(x, activation);
      const Tensor whole = empty(DType::kF32, kRows, shape.rows);
      const TestStep step({{kRows, kRows, Purpose::kPrefill}});
      begin(step);
      backend->linear(step.view, *weight, device_x.view(), whole.view());
      const Values expected = download(whole.view());
      for (std::int64_t t = 0; t < kRows; t += 17) {
        for (std::int64_t r = 0; r < shape.rows; r += 3) {
          // The library's products take weights times their scales, rounded to BF16.
          expect_dot(host.view, r, x.row(t), expected.at(t, r),
                     fmt::format("row {} output {}", t, r), 0x1p-9);
        }
      }
      const TestStep alone({{1, 1}});
      begin(alone);
      const Tensor decoded = empty(DType::kF32, 1, shape.rows);
      backend->linear(alone.view, *weight, device_x.view().row_slice(0, 1), decoded.view());
      const Values expected_decoded = download(decoded.view());
      for (const int chunk : {1, 7, 64, 130}) {
        SCOPED_TRACE(chunk);
        const TestStep mixed({{9, 1}, {chunk, chunk, Purpose::kPrefill}});
        begin(mixed);
        const Tensor y = empty(DType::kF32, 1 + chunk, shape.rows);
        backend->linear(mixed.view, *weight, device_x.view().row_slice(0, 1 + chunk), y.view());
        const Values got = download(y.view());
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          expect_same_bits(expected_decoded.at(0, r), got.at(0, r), "decoded");
          for (std::int64_t t = 1; t <= chunk; ++t) {
            expect_same_bits(expected.at(t, r), got.at(t, r), fmt::format("row {}", t));
          }
        }
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(CudaProducts, LinearReadsAndWritesColumnSlices) {
  Random random(2);
  const HostMatrix host = random.matrix(QuantFormat::kF8E4m3B128, 20, 130);
  const WeightPtr weight = adopt(host);
  const TestStep step({{3, 3}});
  begin(step);
  const Values wide = random.values(3, 140, activation);
  const Tensor x = upload(wide, activation);
  const Tensor y = empty(DType::kF32, 3, 30);
  backend->linear(step.view, *weight, x.view().col_slice(3, 130), y.view().col_slice(5, 20));
  const Values got = download(y.view());
  for (std::int64_t t = 0; t < 3; ++t) {
    for (std::int64_t r = 0; r < 20; ++r) {
      expect_dot(host.view, r, wide.row(t) + 3, got.at(t, 5 + r), "");
    }
    EXPECT_EQ(got.at(t, 4), 0.0f);
    EXPECT_EQ(got.at(t, 25), 0.0f);
  }
}

// Whatever runs beside it, and in the same memory for sums, one after another.
TEST_P(CudaProducts, LinearsAreTheLinearOfEach) {
  struct Case {
    std::vector<std::pair<QuantFormat, std::int64_t>> weights;  // and their outputs
    std::int64_t cols;
  };
  using enum QuantFormat;
  const Case cases[] = {
      // As attention and feed-forwards ask for them.
      {{{kF8E4m3B128, 1536}, {kF8E4m3B128, 576}, {kF8E4m3B128, 128}, {kBf16, 64}}, 7168},
      {{{kF8E4m3B128, 3072}, {kF8E4m3B128, 1024}}, 1536},
      {{{kF8E4m3B128, 2048}, {kF8E4m3B128, 2048}}, 7168},
      // Odd sizes, of one block to many waves: some that share columns between blocks, and some
      // that do not.
      {{{kBf16, 33}, {kBf16, 17000}, {kBf16, 1}, {kBf16, 100}}, 1100},
      {{{kF8E4m3B128, 1}, {kF8E4m3B128, 24}, {kF8E4m3B128, 16}, {kF8E4m3B128, 65}}, 8460},
      {{{kF8E4m3B128, 40}}, 5},
      // More than go together, and formats that go another way.
      {{{kBf16, 40},
        {kF8E4m3B128, 70},
        {kF32, 33},
        {kBf16, 576},
        {kF16, 20},
        {kF8E4m3B128, 18},
        {kBf16, 97},
        {kBf16, 64},
        {kBf16, 31},
        {kF8E4m3B128, 129}},
       1025},
      {{}, 64},
  };
  constexpr int kMost = 35;
  Random random(12);
  for (const Case& of : cases) {
    std::vector<WeightPtr> weights;
    for (const auto& [format, rows] : of.weights) {
      weights.push_back(adopt(random.matrix(format, rows, of.cols)));
    }
    const Tensor x = upload(random.values(kMost, of.cols, activation), activation);
    for (const int num_rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, kMost}) {
      for (const bool with_prefill : {false, true}) {
        SCOPED_TRACE(fmt::format("{} of {} inputs, {} rows{}", weights.size(), of.cols, num_rows,
                                 with_prefill ? " and prefill" : ""));
        const int num_prefill = with_prefill ? std::min(num_rows, kMost - num_rows) : 0;
        if (with_prefill && (num_prefill == 0 || num_rows % 5 != 0)) continue;
        std::vector<TestStep::Part> parts = {{num_rows, num_rows}};
        if (num_prefill > 0) parts.push_back({num_prefill, num_prefill, Purpose::kPrefill});
        const TestStep step(parts);
        begin(step);
        const int all = num_rows + num_prefill;
        const TensorView inputs = x.view().row_slice(kMost - all, all);
        std::vector<Tensor> joined, single;
        std::vector<LinearOutput> outputs;
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const DType dtype = i % 2 == 1 ? DType::kF32 : activation;
          joined.push_back(empty(dtype, all, weights[i]->rows()));
          single.push_back(empty(dtype, all, weights[i]->rows()));
          outputs.push_back({weights[i].get(), joined.back().view()});
        }
        backend->linears(step.view, outputs, inputs);
        for (std::size_t i = 0; i < weights.size(); ++i) {
          backend->linear(step.view, *weights[i], inputs, single[i].view());
        }
        expect_fine();
        for (std::size_t i = 0; i < weights.size(); ++i) {
          const Values expected = download(single[i].view()), got = download(joined[i].view());
          EXPECT_TRUE(same_bits(expected, got)) << "weight " << i;
        }
        if (HasFailure()) return;
      }
    }
  }
}

// Matrices that are streamed: alone and joined, beside others that are not, for any rows.
TEST_P(CudaProducts, LargeLinears) {
  using enum QuantFormat;
  if (!on_tensor_cores(kF8E4m3B128)) GTEST_SKIP() << "BF16 inputs only";
  struct Case {
    std::vector<std::int64_t> rows;
    std::int64_t cols;
  };
  const Case cases[] = {
      {{3023}, 16650},  // just large enough, and nothing whole: tiles, pairs, groups, segments
      {{7040, 40, 7025, 576}, 7168},
      {{500}, 100704},  // blocks share most pairs, several of them one
      {{50400}, 1000},  // and none
  };
  constexpr int kMost = 33;
  Random random(21);
  for (const Case& of : cases) {
    std::vector<HostMatrix> hosts;
    std::vector<WeightPtr> weights;
    for (const std::int64_t rows : of.rows) {
      hosts.push_back(random.matrix(kF8E4m3B128, rows, of.cols));
      EXPECT_EQ(gpu::streams_linear(hosts.back().view), rows * of.cols > 45 << 20);
      weights.push_back(adopt(hosts.back()));
    }
    const Values x = random.values(kMost, of.cols, activation);
    const Tensor device_x = upload(x, activation);
    std::vector<Values> all;  // the outputs of each matrix for all rows
    for (const int num_rows : {kMost, 1, 3, 8, 9, 16}) {
      SCOPED_TRACE(fmt::format("{} of {} inputs, {} rows", of.rows.front(), of.cols, num_rows));
      const TestStep step({{num_rows, num_rows}});
      begin(step);
      const TensorView inputs = device_x.view().row_slice(kMost - num_rows, num_rows);
      std::vector<Tensor> joined, single;
      std::vector<LinearOutput> outputs;
      for (const WeightPtr& weight : weights) {
        joined.push_back(empty(DType::kF32, num_rows, weight->rows()));
        single.push_back(empty(activation, num_rows, weight->rows()));
        outputs.push_back({weight.get(), joined.back().view()});
      }
      backend->linears(step.view, outputs, inputs);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        backend->linear(step.view, *weights[i], inputs, single[i].view());
      }
      for (std::size_t i = 0; i < weights.size(); ++i) {
        SCOPED_TRACE(fmt::format("weight {}", i));
        const Values got = download(joined[i].view());
        if (num_rows == kMost) {
          all.push_back(got);
          const std::int64_t last = of.rows[i] - 1;
          for (int sample = 0; sample < 10; ++sample) {
            const std::int64_t r = last * sample / 9;
            for (std::int64_t t = 0; t < kMost; ++t) {
              expect_dot(hosts[i].view, r, x.row(t), got.at(t, r),
                         fmt::format("row {} output {}", t, r));
            }
          }
        }
        Values expected(num_rows, of.rows[i]);
        std::copy_n(all[i].row(kMost - num_rows), expected.data.size(), expected.data.begin());
        EXPECT_TRUE(same_bits(expected, got));
        for (float& value : expected.data) value = as_stored(activation, value);
        EXPECT_TRUE(same_bits(expected, download(single[i].view()))) << "alone";
      }
      if (HasFailure()) return;
    }
  }
}

// One after another in the same memory, in order or not, and from graphs.
TEST_P(CudaProducts, LargeLinearsThatOverlap) {
  if (!on_tensor_cores(QuantFormat::kF8E4m3B128)) GTEST_SKIP() << "BF16 inputs only";
  constexpr std::int64_t kSize = 7104;
  Random random(22);
  const HostMatrix large = random.matrix(QuantFormat::kF8E4m3B128, kSize, kSize);
  const HostMatrix small = random.matrix(QuantFormat::kF8E4m3B128, 100, kSize);
  ASSERT_TRUE(gpu::streams_linear(large.view));
  for (const int num_rows : {3, 16}) {
    const Values x = random.values(num_rows, kSize, activation, 0x1p-8f);
    // The last of a few products of products, each time a part runs.
    const auto chain = [&](const CudaBackendOptions& options) {
      backend = make_backend(options);
      const TestStep step({{num_rows, num_rows}});
      const WeightPtr weight = adopt(large), other = adopt(small);
      const Tensor first = upload(x, activation);
      const Tensor even = empty(activation, num_rows, kSize);
      const Tensor odd = empty(activation, num_rows, kSize);
      const Tensor beside = empty(DType::kF32, num_rows, small.view.rows);
      std::vector<Values> got;
      for (int i = 0; i < 4; ++i) {
        begin(step);
        {
          const PartScope part(backend.get(), step.view, 0);
          backend->linear(step.view, *weight, first.view(), even.view());
          backend->linear(step.view, *weight, even.view(), odd.view());
          const LinearOutput both[] = {{weight.get(), even.view()}, {other.get(), beside.view()}};
          backend->linears(step.view, both, odd.view());
          backend->linear(step.view, *weight, even.view(), odd.view());
        }
        got.push_back(download(odd.view()));
        got.push_back(download(beside.view()));
      }
      EXPECT_EQ(cuda_graphs_held(*backend) > 0, options.most_graphs > 0);
      return got;
    };
    CudaBackendOptions options = options_for(GetParam());
    const std::vector<Values> replayed = chain(options);
    options.most_graphs = 0;
    const std::vector<Values> overlapped = chain(options);
    options.overlap_launches = false;
    const std::vector<Values> in_order = chain(options);
    for (std::size_t i = 0; i < in_order.size(); ++i) {
      EXPECT_NE(in_order[i].data.front(), 0.0f);
      EXPECT_TRUE(std::isfinite(in_order[i].data.front()));
      EXPECT_TRUE(same_bits(overlapped[i], in_order[i])) << i;
      EXPECT_TRUE(same_bits(replayed[i], in_order[i])) << i;
    }
    if (HasFailure()) return;
  }
}

TEST_P(CudaProducts, LogitsOfTheWantedRows) {
  Random random(3);
  const HostMatrix host = random.matrix(QuantFormat::kBf16, 50, 64);
  const WeightPtr head = adopt(host);
  const TestStep step({{4, 4, Purpose::kPrefill}, {9, 1}});
  begin(step);
  const Values x = random.values(5, 64, activation);
  const Tensor all = upload(x, activation), hidden = empty(activation, 2, 64);
  const Tensor logits = empty(DType::kF32, 2, 50);
  backend->gather_logit_rows(step.view, all.view(), hidden.view());
  backend->logits(step.view, *head, hidden.view(), logits.view());
  const Values got = download(logits.view());
  for (std::int64_t r = 0; r < 50; ++r) {
    expect_dot(host.view, r, x.row(3), got.at(0, r), "row 3");
    expect_dot(host.view, r, x.row(4), got.at(1, r), "row 4");
  }
}

TEST_P(CudaProducts, AWeightWithNanIsRefused) {
  HostMatrix host = Random(6).matrix(QuantFormat::kF8E4m3B128, 16, 128);
  host.payload[77] = std::byte{0xff};
  const auto weight = backend->adopt(host.view);
  ASSERT_FALSE(weight.ok());
  EXPECT_EQ(weight.error().code(), ErrorCode::kCorrupt);
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaProducts, testing::ValuesIn(kPlainTypes), types_of_test);

}  // namespace
}  // namespace stoker
