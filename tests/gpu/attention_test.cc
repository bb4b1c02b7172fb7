// Selection and attention, against formulas in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/gpu/cuda_test.h"

namespace stoker {
namespace {

class CudaAttention : public CudaTest {
 protected:
  // Positions that select() must choose for `row`; empty: all.
  static std::vector<std::int32_t> best(const TestStep& step, int row, const IndexerDims& dims,
                                        const Values& queries, const Values& weights,
                                        const Values& keys) {
    const int visible = step.positions[static_cast<std::size_t>(row)] + 1;
    if (visible <= dims.top_k) return {};
    std::vector<double> scores(static_cast<std::size_t>(visible));
    for (int j = 0; j < visible; ++j) {
      const std::int64_t at = step.cache_row(step.sequence_of(row), j);
      for (int h = 0; h < dims.num_heads; ++h) {
        double dot = 0;
        for (int d = 0; d < dims.head_dim; ++d) {
          dot += double{queries.at(row, h * dims.head_dim + d)} * keys.at(at, d);
        }
        scores[static_cast<std::size_t>(j)] += std::max(dot, 0.0) * weights.at(row, h);
      }
    }
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(dims.top_k));
    std::sort(order.begin(), order.end());
    return order;
  }

  void check_selection(const TestStep& step, const IndexerDims& dims, const Values& queries,
                       const Values& weights, const Values& keys) {
    begin(step);
    const Tensor q = upload(queries, activation), w = upload(weights, DType::kF32);
    const Tensor k = upload(keys, backend->kv_dtype());
    const Tensor positions = empty(DType::kI32, step.num_rows(), dims.top_k);
    const Tensor counts = empty(DType::kI32, step.num_rows(), 1);
    backend->select(step.view,
                    {dims, q.view(), w.view(), {k.view()}, {positions.view(), counts.view()}});
    const auto got = download_ints(positions.view()), got_counts = download_ints(counts.view());
    for (int t = 0; t < step.num_rows(); ++t) {
      const auto expected = best(step, t, dims, queries, weights, keys);
      const auto row = static_cast<std::size_t>(t);
      ASSERT_EQ(got_counts[row], expected.empty() ? -1 : dims.top_k) << "row " << t;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(got[row * static_cast<std::size_t>(dims.top_k) + i], expected[i])
            << "row " << t << " choice " << i;
      }
    }
  }
};

TEST_P(CudaAttention, SelectsTheBestAndTheLowestOfTies) {
  Random random(20);
  const IndexerDims dims{3, 10, 70};
  // Dense rows, the first sparse ones, and more rows than are scored at once.
  const TestStep step({{75, 10}, {1500, 2}, {700, 90, Purpose::kPrefill}});
  // Small integers: scores are exact and tie often.
  const auto integers = [&](std::int64_t rows, std::int64_t cols) {
    Values values(rows, cols);
    for (float& value : values.data) value = static_cast<float>(random.below(5) - 2);
    return values;
  };
  check_selection(step, dims, integers(step.num_rows(), 30), integers(step.num_rows(), 3),
                  integers(step.cache_rows(), 10));
}

TEST_P(CudaAttention, SelectsTheLowestWhereAllTie) {
  const IndexerDims dims{2, 8, 5};
  const TestStep step({{600, 3}});
  check_selection(step, dims, Values(3, 16), Values(3, 2), Values(step.cache_rows(), 8));
}

TEST_P(CudaAttention, SelectsWithTheModelsDimensions) {
  Random random(21);
  const IndexerDims dims{64, 128, 2048};
  const TestStep step({{3000, 2}});
  Values queries(2, 64 * 128), weights(2, 64), keys(step.cache_rows(), 128);
  for (Values* values : {&queries, &weights, &keys}) {
    for (float& value : values->data) value = static_cast<float>(random.below(3) - 1);
  }
  check_selection(step, dims, queries, weights, keys);
}

// Dimensions for which BF16 keys go to tensor cores, around the borders of pages and tiles.
TEST_P(CudaAttention, SelectsAtEveryLength) {
  Random random(23);
  const IndexerDims dims{64, 128, 62};
  const TestStep step({{1, 1},
                       {63, 1},
                       {64, 1},
                       {65, 1},
                       {256, 1},
                       {257, 3},
                       {2048, 1},
                       {330, 20, Purpose::kPrefill},
                       {5000, 2}});
  const int num_rows = step.num_rows();
  Values queries(num_rows, 64 * 128), weights(num_rows, 64), keys(step.cache_rows(), 128);
  for (Values* values : {&queries, &weights, &keys}) {
    for (float& value : values->data) value = static_cast<float>(random.below(3) - 1);
  }
  check_selection(step, dims, queries, weights, keys);
}

// More equal scores than candidates are gathered, and more scores than flags are held at once.
TEST_P(CudaAttention, SelectsFromLongContexts) {
  Random random(24);
  const IndexerDims dims{1, 4, 2048};
  const TestStep step({{140000, 2}});
  Values queries(2, 4), weights(2, 1), keys(step.cache_rows(), 4);
  queries.at(0, 0) = 1.0f;  // 256 different scores
  queries.at(1, 0) = 1.0f / 256;
  queries.at(1, 1) = 1.0f;  // 65536
  for (float& value : weights.data) value = 1.0f;
  for (float& value : keys.data) value = static_cast<float>(random.below(256));
  check_selection(step, dims, queries, weights, keys);
  for (float& value : queries.data) value = 0.0f;
  check_selection(step, dims, queries, weights, keys);
}

struct AttentionCase {
  AttentionDims dims;
  std::vector<TestStep::Part> parts;
  QuantFormat format;
  int top_k;  // 0: dense
};

class CudaAttend : public CudaAttention {
 protected:
  void check(const AttentionCase& c) {
    Random random(22);
    const AttentionDims& dims = c.dims;
    const int heads = dims.num_heads, query_dim = dims.nope_dim + dims.rope_dim;
    const int width = dims.latent_dim + dims.rope_dim;
    const TestStep step(c.parts);
    begin(step);
    const int num_rows = step.num_rows();
    const Values queries = random.values(num_rows, heads * query_dim, activation);
    const Values cache = random.values(step.cache_rows(), width, backend->kv_dtype());
    HostMatrix kv_b =
        random.matrix(c.format, heads * (dims.nope_dim + dims.value_dim), dims.latent_dim);
    const Tensor q = upload(queries, activation), latents = upload(cache, backend->kv_dtype());
    const Tensor out = empty(activation, num_rows, heads * dims.value_dim);
    auto weight = backend->adopt_kv_b(kv_b.view, dims);
    ASSERT_TRUE(weight.ok());
    // Every other row takes a selection of every third position; the others are dense.
    Selection selection;
    Tensor positions, counts;
    std::vector<std::vector<int>> chosen(static_cast<std::size_t>(num_rows));
    if (c.top_k != 0) {
      positions = empty(DType::kI32, num_rows, c.top_k);
      counts = empty(DType::kI32, num_rows, 1);
      std::vector<std::int32_t> host(static_cast<std::size_t>(num_rows * c.top_k)), host_counts;
      for (int t = 0; t < num_rows; ++t) {
        auto& row = chosen[static_cast<std::size_t>(t)];
        const int last = step.positions[static_cast<std::size_t>(t)];
        for (int j = 0; t % 2 == 0 && j <= last && static_cast<int>(row.size()) < c.top_k; j += 3) {
          host[static_cast<std::size_t>(t * c.top_k) + row.size()] = j;
          row.push_back(j);
        }
        host_counts.push_back(row.empty() ? -1 : static_cast<std::int32_t>(row.size()));
      }
      backend->copy_in(positions.view(), host.data());
      backend->copy_in(counts.view(), host_counts.data());
      expect_fine();
      selection = {positions.view(), counts.view()};
    }
    backend->attend(step.view, {dims,
                                q.view(),
                                weight->get(),
                                {latents.view()},
                                c.top_k != 0 ? &selection : nullptr,
                                out.view()});
    const Values got = download(out.view());
    for (int t = 0; t < num_rows; ++t) {
      auto visible = chosen[static_cast<std::size_t>(t)];
      if (visible.empty()) {
        visible.resize(static_cast<std::size_t>(step.positions[static_cast<std::size_t>(t)]) + 1);
        std::iota(visible.begin(), visible.end(), 0);
      }
      for (int h = 0; h < heads; ++h) {
        check_head(step, dims, t, h, visible, queries, cache, kv_b.view, got);
      }
      if (HasFailure()) return;
    }
  }

  // The unabsorbed form: keys and values of each position are computed.
  void check_head(const TestStep& step, const AttentionDims& dims, int t, int h,
                  const std::vector<int>& visible, const Values& queries, const Values& cache,
                  const QuantView& kv_b, const Values& got) const {
    const int query_dim = dims.nope_dim + dims.rope_dim;
    const auto weight = [&](int row, int col) {
      const int at = h * (dims.nope_dim + dims.value_dim) + row;
      return double{quant::element_at(kv_b, at, col)} * quant::scale_at(kv_b, at, col);
    };
    std::vector<double> absorbed(static_cast<std::size_t>(dims.latent_dim));
    for (int l = 0; l < dims.latent_dim; ++l) {
      for (int d = 0; d < dims.nope_dim; ++d) {
        absorbed[static_cast<std::size_t>(l)] += queries.at(t, h * query_dim + d) * weight(d, l);
      }
    }
    std::vector<double> p;
    double highest = -1e300, total = 0;
    for (const int j : visible) {
      const std::int64_t at = step.cache_row(step.sequence_of(t), j);
      double dot = 0;
      for (int l = 0; l < dims.latent_dim; ++l) {
        dot += absorbed[static_cast<std::size_t>(l)] * cache.at(at, l);
      }
      for (int d = 0; d < dims.rope_dim; ++d) {
        dot += double{queries.at(t, h * query_dim + dims.nope_dim + d)} *
               cache.at(at, dims.latent_dim + d);
      }
      p.push_back(dot * dims.softmax_scale);
      highest = std::max(highest, p.back());
    }
    for (double& value : p) total += value = std::exp(value - highest);
    std::vector<double> mixed(static_cast<std::size_t>(dims.latent_dim));
    for (std::size_t i = 0; i < visible.size(); ++i) {
      const std::int64_t at = step.cache_row(step.sequence_of(t), visible[i]);
      for (int l = 0; l < dims.latent_dim; ++l) {
        mixed[static_cast<std::size_t>(l)] += p[i] / total * cache.at(at, l);
      }
    }
    double wrong = 0, size = 0;
    for (int v = 0; v < dims.value_dim; ++v) {
      double expected = 0;
      for (int l = 0; l < dims.latent_dim; ++l) {
        expected += mixed[static_cast<std::size_t>(l)] * weight(dims.nope_dim + v, l);
      }
      const double error = expected - got.at(t, h * dims.value_dim + v);
      wrong += error * error;
      size += expected * expected;
    }
    // An operand rounded to 8 bits moves the scores, and so the mixture, by about a percent.
    EXPECT_LE(std::sqrt(wrong), (activation == DType::kBf16 ? 3e-2 : 1e-4) * std::sqrt(size))
        << "row " << t << " head " << h;
  }
};

TEST_P(CudaAttend, Dense) {
  check({{3, 8, 4, 6, 20, 0.3f}, {{150, 5}, {1, 1}, {64, 2}, {65, 2}}, QuantFormat::kBf16, 0});
}
TEST_P(CudaAttend, SelectedAndDenseRowsTogether) {
  check({{2, 8, 4, 6, 20, 0.3f}, {{150, 6}, {300, 5}}, QuantFormat::kBf16, 40});
}
TEST_P(CudaAttend, ModelDimensionsAndFp8Weights) {
  check({{2, 128, 64, 128, 512, 0.02f}, {{200, 2}, {130, 1}}, QuantFormat::kF8E4m3B128, 64});
}
TEST_P(CudaAttend, EveryLengthOfDenseRows) {
  check({{16, 128, 64, 128, 512, 0.02f},
         {{1, 1},
          {63, 1},
          {64, 2},
          {65, 2},
          {513, 1},
          {2048, 1},
          {5000, 1},
          {66, 2, Purpose::kPrefill},
          {4500, 1, Purpose::kPrefill}},
         QuantFormat::kF8E4m3B128,
         0});
}
TEST_P(CudaAttend, SelectedRowsOfSeveralSplits) {
  check({{16, 128, 64, 128, 512, 0.02f}, {{6200, 1}, {1500, 2}}, QuantFormat::kBf16, 2048});
}
TEST_P(CudaAttend, OtherHeadDimensionsAndFormats) {
  check({{16, 192, 64, 256, 512, 0.02f}, {{130, 2}}, QuantFormat::kF32, 0});
  check({{16, 64, 64, 32, 512, 0.02f}, {{130, 2}}, QuantFormat::kF16, 0});
}

// Alone, beside a few others, and in a batch large enough for blocks of another shape.
TEST_P(CudaAttend, BatchesChangeNoBit) {
  Random random(25);
  const AttentionDims dims{64, 128, 64, 128, 512, 0.02f};
  constexpr int kTopK = 2048;
  const TestStep step({{1, 1}, {63, 1}, {64, 1}, {65, 1}, {700, 60}, {2048, 2}, {5000, 40}});
  const int num_rows = step.num_rows(), query_dim = dims.num_heads * (128 + 64);
  const Tensor q = upload(random.values(num_rows, query_dim, activation), activation);
  const Tensor latents =
      upload(random.values(step.cache_rows(), 576, backend->kv_dtype()), backend->kv_dtype());
  HostMatrix kv_b = random.matrix(QuantFormat::kF8E4m3B128, dims.num_heads * 256, 512);
  auto weight = backend->adopt_kv_b(kv_b.view, dims);
  ASSERT_TRUE(weight.ok());
  const Tensor positions = empty(DType::kI32, num_rows, kTopK);
  const Tensor counts = empty(DType::kI32, num_rows, 1);
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(num_rows * kTopK)), how_many;
  for (int t = 0; t < num_rows; ++t) {
    const bool dense = step.positions[static_cast<std::size_t>(t)] < kTopK;
    how_many.push_back(dense ? -1 : kTopK);
    for (int i = 0; i < kTopK; ++i) chosen[static_cast<std::size_t>(t * kTopK + i)] = 2 * i + t % 2;
  }
  backend->copy_in(positions.view(), chosen.data());
  backend->copy_in(counts.view(), how_many.data());
  expect_fine();
  const auto attend = [&](const StepView& view, int begin, bool sparse) {
    const Tensor out = empty(activation, view.num_rows(), dims.num_heads * 128);
    CHECK(backend->begin_step(view).ok(), "begin");
    const Selection selection{positions.view().row_slice(begin, view.num_rows()),
                              counts.view().row_slice(begin, view.num_rows())};
    backend->attend(view, {dims,
                           q.view().row_slice(begin, view.num_rows()),
                           weight->get(),
                           {latents.view()},
                           sparse ? &selection : nullptr,
                           out.view()});
    return download(out.view());
  };
  for (const bool sparse : {false, true}) {
    const Values together = attend(step.view, 0, sparse);
    for (const int num_together : {1, 3}) {
      for (int t = 0; t + num_together <= num_rows; t += t < 6 ? 1 : 13) {
        if (step.sequence_of(t) != step.sequence_of(t + num_together - 1)) continue;
        const RowRange ranges[] = {{0, num_together, 0, Purpose::kDecode}};
        const auto first = static_cast<std::size_t>(t),
                   count = static_cast<std::size_t>(num_together);
        const SequencePages pages[] = {
            step.sequences[static_cast<std::size_t>(step.sequence_of(t))]};
        const StepView view{std::span(step.tokens).subspan(first, count),
                            std::span(step.positions).subspan(first, count),
                            ranges,
                            pages,
                            {}};
        const Values alone = attend(view, t, sparse);
        for (std::int64_t i = 0; i < num_together; ++i) {
          const std::vector<float> expected(together.row(t + i), together.row(t + i + 1));
          const std::vector<float> got(alone.row(i), alone.row(i + 1));
          ASSERT_EQ(got, expected) << "row " << t + i << (sparse ? ", sparse" : ", dense");
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaAttention, testing::Values(DType::kBf16, DType::kF32),
                         dtype_of_test);
INSTANTIATE_TEST_SUITE_P(Activations, CudaAttend, testing::Values(DType::kBf16, DType::kF32),
                         dtype_of_test);

}  // namespace
}  // namespace stoker
