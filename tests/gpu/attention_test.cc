// Selection and attention, against formulas in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/gpu/cuda_test.h"

namespace stoker {
namespace {

class CudaAttention : public CudaTest {
 protected:
  // Scores of the positions that `row` sees.
  static std::vector<double> scores_of(const TestStep& step, int row, const IndexerDims& dims,
                                       const Values& queries, const Values& weights,
                                       const Values& keys) {
    const int visible = step.positions[static_cast<std::size_t>(row)] + 1;
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
    return scores;
  }

  // Positions of the best scores, ties to the lower one.
  static std::vector<std::int32_t> best(const std::vector<double>& scores, int top_k) {
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(top_k));
    std::sort(order.begin(), order.end());
    return order;
  }

  // Where scores are rounded, those near the cut may go either way.
  static void expect_about_best(const std::vector<double>& scores, const std::int32_t* got,
                                int top_k, int row) {
    std::vector<double> sorted = scores;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const double cut = sorted[static_cast<std::size_t>(top_k - 1)];
    const double slack = 1e-4 * std::max(std::fabs(sorted.front()), std::fabs(sorted.back()));
    std::size_t next = 0;
    for (std::int32_t j = 0; j < static_cast<std::int32_t>(scores.size()); ++j) {
      const bool chosen = next < static_cast<std::size_t>(top_k) && got[next] == j;
      if (chosen) ++next;
      const double score = scores[static_cast<std::size_t>(j)];
      ASSERT_TRUE(chosen ? score >= cut - slack : score <= cut + slack)
          << "row " << row << " position " << j << ", score " << score << ", cut " << cut;
    }
    ASSERT_EQ(next, static_cast<std::size_t>(top_k)) << "row " << row;
  }

  void check_selection(const TestStep& step, const IndexerDims& dims, const Values& queries,
                       const Values& weights, const Values& keys) {
    begin(step);
    const KvRow row = index_key_row(dims);
    const Tensor q = upload(queries, activation), w = upload(weights, DType::kF32);
    const Tensor k = upload_cache(*backend, row, keys);
    const Tensor positions = empty(DType::kI32, step.num_rows(), dims.top_k);
    const Tensor counts = empty(DType::kI32, step.num_rows(), 1);
    backend->select(step.view,
                    {dims, q.view(), w.view(), {k.view(), row}, {positions.view(), counts.view()}});
    const auto got = download_ints(positions.view()), got_counts = download_ints(counts.view());
    const Values kept = as_cached(GetParam().kv, row, keys);
    Values multiplied = queries;
    for (int t = 0; t < step.num_rows() && fp8_cache(); ++t) {
      for (int h = 0; h < dims.num_heads; ++h) {
        quant::round_index_query(&multiplied.at(t, h * dims.head_dim), dims.head_dim);
      }
    }
    for (int t = 0; t < step.num_rows(); ++t) {
      const bool scored = step.positions[static_cast<std::size_t>(t)] >= dims.top_k;
      ASSERT_EQ(got_counts[static_cast<std::size_t>(t)], scored ? dims.top_k : -1) << "row " << t;
      if (!scored) continue;
      const auto scores = scores_of(step, t, dims, multiplied, weights, kept);
      const std::int32_t* const choice = &got[static_cast<std::size_t>(t * dims.top_k)];
      if (fp8_cache()) {
        expect_about_best(scores, choice, dims.top_k, t);
        if (HasFatalFailure()) return;
        continue;
      }
      const auto expected = best(scores, dims.top_k);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(choice[i], expected[i]) << "row " << t << " choice " << i;
      }
    }
  }
};

TEST_P(CudaAttention, SelectsTheBestAndTheLowestOfTies) {
  Random random(20);
  const int dim = fp8_cache() ? 16 : 10;  // 16: can be rotated
  const IndexerDims dims{3, dim, 70};
  // Dense rows, the first sparse ones, and more rows than are scored at once.
  const TestStep step({{75, 10}, {1500, 2}, {700, 90, Purpose::kPrefill}});
  // Small integers: scores are exact and tie often.
  const auto integers = [&](std::int64_t rows, std::int64_t cols) {
    Values values(rows, cols);
    for (float& value : values.data) value = static_cast<float>(random.below(5) - 2);
    return values;
  };
  check_selection(step, dims, integers(step.num_rows(), 3 * dim), integers(step.num_rows(), 3),
                  integers(step.cache_rows(), dim));
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
  const TestStep step({{160000, 2}});
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
    const KvRow row = latent_row(dims);
    const Values written = random.values(step.cache_rows(), width);
    const Values cache = as_cached(GetParam().kv, row, written);
    HostMatrix kv_b =
        random.matrix(c.format, heads * (dims.nope_dim + dims.value_dim), dims.latent_dim);
    const Tensor q = upload(queries, activation);
    const Tensor latents = upload_cache(*backend, row, written);
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
                                {latents.view(), row},
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
  const TestStep step({{1, 1},
                       {63, 1},
                       {64, 1},
                       {65, 1},
                       {128, 1},
                       {129, 1},
                       {193, 1},
                       {256, 1},
                       {257, 1},
                       {641, 1},
                       {700, 60},
                       {2048, 2},
                       {4095, 3},
                       {5000, 40}});
  const int num_rows = step.num_rows(), query_dim = dims.num_heads * (128 + 64);
  const Tensor q = upload(random.values(num_rows, query_dim, activation), activation);
  const KvRow row = latent_row(dims);
  const Tensor latents = upload_cache(*backend, row, random.values(step.cache_rows(), 576));
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
                           {latents.view(), row},
                           sparse ? &selection : nullptr,
                           out.view()});
    return download(out.view());
  };
  for (const bool sparse : {false, true}) {
    const Values together = attend(step.view, 0, sparse);
    for (const int num_together : {1, 2, 3}) {
      for (int t = 0; t + num_together <= num_rows; t += t < 12 ? 1 : 7) {
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

// Chains of launches for one row, again and again without a pause, on a stream whose kernels
// overlap: the bits of those in order. Lengths that each kernel of top-k takes, attention up to
// 5000.
TEST_P(CudaAttend, OverlappingChangesNoBit) {
  Random random(28);
  const AttentionDims dims{32, 128, 64, 128, 512, 0.02f};
  const IndexerDims indexer{64, 128, 2048};
  constexpr int kInputs = 3, kTimes = 200;
  const Values q = random.values(kInputs, dims.num_heads * (128 + 64), activation);
  const Values index_q = random.values(kInputs, 64 * 128, activation);
  const Values weights = random.values(kInputs, 64);
  HostMatrix kv_b = random.matrix(QuantFormat::kF8E4m3B128, dims.num_heads * 256, 512);
  for (const int length : {2050, 4096, 5000, 17000, 70000}) {
    const bool attends = length <= 5000;
    const TestStep step({{length, 1}});
    const KvRow latent = latent_row(dims), key = index_key_row(indexer);
    const Values written = random.values(attends ? step.cache_rows() : 1, latent.num_values());
    const Values keys = random.values(step.cache_rows(), indexer.head_dim);
    const auto run = [&](bool overlaps, int times) {
      CudaBackendOptions options = options_for(GetParam());
      options.overlap_launches = overlaps;
      const auto b = make_backend(options);
      const Tensor latents = upload_cache(*b, latent, written);
      const Tensor index_keys = upload_cache(*b, key, keys);
      const Tensor queries = upload(q, activation), index_queries = upload(index_q, activation);
      const Tensor index_weights = upload(weights, DType::kF32);
      auto weight = b->adopt_kv_b(kv_b.view, dims);
      CHECK(weight.ok() && b->begin_step(step.view).ok(), "begin");
      const Tensor out = empty(activation, times, dims.num_heads * 128);
      const Tensor positions = empty(DType::kI32, times, indexer.top_k);
      const Tensor counts = empty(DType::kI32, times, 1);
      for (int i = 0; i < times; ++i) {
        const int input = i % kInputs;
        const Selection selection{positions.view().row_slice(i, 1), counts.view().row_slice(i, 1)};
        b->select(step.view, {indexer,
                              index_queries.view().row_slice(input, 1),
                              index_weights.view().row_slice(input, 1),
                              {index_keys.view(), key},
                              selection});
        if (!attends) continue;
        b->attend(step.view, {dims,
                              queries.view().row_slice(input, 1),
                              weight->get(),
                              {latents.view(), latent},
                              &selection,
                              out.view().row_slice(i, 1)});
      }
      EXPECT_TRUE(b->finish().ok());
      return std::pair(download_ints(positions.view()), attends ? download(out.view()) : Values());
    };
    const auto expected = run(false, kInputs), got = run(true, kTimes);
    for (int i = 0; i < kTimes; ++i) {
      const auto same = [&](const auto& all, const auto& right) {
        const auto width = static_cast<std::ptrdiff_t>(right.size()) / kInputs;
        return std::equal(all.begin() + i * width, all.begin() + (i + 1) * width,
                          right.begin() + i % kInputs * width);
      };
      ASSERT_TRUE(same(got.first, expected.first)) << "selection " << i << " of " << length;
      ASSERT_TRUE(same(got.second.data, expected.second.data)) << "time " << i << " of " << length;
    }
  }
}

// Rows and keys byte for byte as the host encodes them, whatever they hold.
TEST_P(CudaAttention, AppendsFp8RowsAsTheHostDoes) {
  if (!fp8_cache()) GTEST_SKIP() << "an FP8 cache only";
  Random random(26);
  for (const KvRow& row : {KvRow{512, 64}, {40, 8}, {301, 9}, {128, 0}, {32, 0}, {256, 0}}) {
    const bool is_key = row.kept == 0;
    const TestStep step({{70, 8}, {130, 1}});
    begin(step);
    Values x = random.values(9, row.num_values(), activation, 3.0f);
    for (std::int64_t c = 0; c < x.cols; ++c) {
      x.at(1, c) = 0.0f;
      x.at(2, c) = as_stored(activation, x.at(2, c) * 1e-6f);
      x.at(3, c) = as_stored(activation, x.at(3, c) * 1e30f);
    }
    x.at(4, 5) = INFINITY;
    x.at(5, 3) = NAN;
    const std::int64_t bytes = quant::kv_row_layout(row).bytes;
    const Tensor device_x = upload(x, activation);
    const Tensor cache = empty(DType::kU8, step.cache_rows(), bytes);
    if (is_key) {
      backend->append_index_key(step.view, device_x.view(), {cache.view(), row});
    } else {
      backend->append_latent(step.view, device_x.view(), {cache.view(), row});
    }
    std::vector<std::byte> got(static_cast<std::size_t>(step.cache_rows() * bytes));
    std::vector<std::byte> expected(got.size());
    backend->copy_out(got.data(), cache.view());
    expect_fine();
    for (int t = 0; t < 9; ++t) {
      if (is_key) quant::rotate_index_vector(&x.at(t, 0), row.num_values());
      const std::int64_t place =
          step.cache_row(step.sequence_of(t), step.positions[static_cast<std::size_t>(t)]);
      quant::encode_kv_row(row, x.row(t), expected.data() + place * bytes);
    }
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], expected[i]) << row.quantised << ": byte " << i % bytes << " of row "
                                     << i / static_cast<std::size_t>(bytes);
    }
  }
}

// What FP8 stands for is exact in BF16: the same bits as over a BF16 cache of the same values, with
// and without tensor cores.
TEST_P(CudaAttend, AnFp8CacheIsABf16CacheOfItsValues) {
  if (!fp8_cache()) GTEST_SKIP() << "an FP8 cache only";
  Random random(27);
  for (const AttentionDims& dims :
       {AttentionDims{64, 128, 64, 128, 512, 0.02f}, AttentionDims{3, 24, 9, 20, 301, 0.1f}}) {
    const TestStep step({{1, 1}, {65, 2}, {1300, 3}, {300, 70, Purpose::kPrefill}});
    const KvRow row = latent_row(dims);
    const Values written = random.values(step.cache_rows(), row.num_values());
    const Values kept = as_cached(KvFormat::kFp8, row, written);
    const Values q =
        random.values(step.num_rows(),
                      std::int64_t{dims.num_heads} * (dims.nope_dim + dims.rope_dim), activation);
    HostMatrix kv_b = random.matrix(
        QuantFormat::kBf16, dims.num_heads * (dims.nope_dim + dims.value_dim), dims.latent_dim);
    std::vector<Values> results;
    const auto other = make_backend({activation, KvFormat::kBf16});
    for (Backend* b : {backend.get(), other.get()}) {
      const Tensor cache = upload_cache(*b, row, b == other.get() ? kept : written);
      const Tensor queries = upload(q, activation);
      auto weight = b->adopt_kv_b(kv_b.view, dims);
      ASSERT_TRUE(weight.ok());
      const Tensor out =
          empty(activation, step.num_rows(), std::int64_t{dims.num_heads} * dims.value_dim);
      ASSERT_TRUE(b->begin_step(step.view).ok());
      b->attend(step.view,
                {dims, queries.view(), weight->get(), {cache.view(), row}, nullptr, out.view()});
      ASSERT_TRUE(b->finish().ok());
      results.push_back(download(out.view()));
    }
    ASSERT_EQ(results[0].data, results[1].data) << dims.latent_dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaAttention, testing::ValuesIn(kCacheTypes), types_of_test);
INSTANTIATE_TEST_SUITE_P(Activations, CudaAttend, testing::ValuesIn(kCacheTypes), types_of_test);

}  // namespace
}  // namespace stoker
