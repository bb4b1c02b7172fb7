// One text for every operation of a host backend, against the reference backend.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "cpu/reference_backend.h"
#include "tests/cpu/backend_harness.h"
#include "tests/support/fp8_reference.h"

namespace stoker {
namespace {

struct Case {
  Isa isa;
  DType dtype;
  KvFormat kv;
  float tolerance;  // relative to the largest value
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Isa isa : available_isas()) {
    all.push_back({isa, DType::kF32, KvFormat::kF32, 2e-5f});
    all.push_back({isa, DType::kBf16, KvFormat::kBf16, 2e-2f});
  }
  return all;
}
// For operations on caches. What an FP8 row stands for is exact in BF16, so that the tolerances
// stay.
std::vector<Case> cached_cases() {
  std::vector<Case> all = cases();
  for (const Case& c : cases()) all.push_back({c.isa, c.dtype, KvFormat::kFp8, c.tolerance});
  return all;
}
std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return fmt::format("{}_{}_{}", isa_name(c.isa), dtype_name(c.dtype), kv_format_name(c.kv));
}

std::unique_ptr<Backend> reference_for(KvFormat kv) {
  if (kv == KvFormat::kFp8) return std::make_unique<test::Fp8Reference>();
  return std::make_unique<ReferenceBackend>();
}

class BackendOpsTest : public ::testing::TestWithParam<Case> {
 protected:
  Tensor tensor(Backend& backend, std::int64_t rows, std::int64_t cols,
                const std::vector<float>& values = {}) {
    return make_tensor(backend, backend.activation_dtype(), rows, cols, values);
  }
  // Runs `operation` on both backends and compares what it returns.
  template <typename F>
  void compare(const std::string& what, F operation) {
    const std::vector<float> expected = operation(*reference);
    expect_near(operation(*backend), expected, GetParam().tolerance, what);
    EXPECT_TRUE(backend->finish().ok());
  }

  std::mt19937 random{17};
  Team team{2};
  std::unique_ptr<Backend> reference = reference_for(GetParam().kv);
  std::unique_ptr<Backend> backend =
      cpu_backend(team, GetParam().isa, GetParam().dtype, GetParam().kv);
};
INSTANTIATE_TEST_SUITE_P(Cpu, BackendOpsTest, ::testing::ValuesIn(cases()), case_name);

class CachedOpsTest : public BackendOpsTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, CachedOpsTest, ::testing::ValuesIn(cached_cases()), case_name);

constexpr Purpose kPurposes[] = {Purpose::kDecode, Purpose::kPrefill};
constexpr QuantFormat kFormats[] = {QuantFormat::kF32, QuantFormat::kF16, QuantFormat::kBf16,
                                    QuantFormat::kF8E4m3B128};

TEST_P(BackendOpsTest, Embed) {
  for (const QuantFormat format : kFormats) {
    const RandomMatrix table(9, 70, format, random);
    const TestStep step(9, 9, Purpose::kPrefill);
    compare("embed", [&](Backend& b) {
      const WeightPtr weight = b.adopt_embedding(table.row_major()).value();
      const Tensor out = tensor(b, 9, 70);
      b.embed(step.view(), *weight, out.view());
      return floats_of(out.view());
    });
  }
}

TEST_P(BackendOpsTest, LinearOfEveryFormatAndPurpose) {
  for (const QuantFormat format : kFormats) {
    const RandomMatrix w(90, 200, format, random);
    const std::vector<float> x = bf16_floats(7 * 200, random);
    for (const Purpose purpose : kPurposes) {
      const TestStep step(7, 7, purpose);
      for (const bool wide_out : {false, true}) {
        compare("linear", [&](Backend& b) {
          const WeightPtr weight = b.adopt(w.row_major()).value();
          const Tensor in = tensor(b, 7, 200, x);
          const Tensor out = make_tensor(b, wide_out ? DType::kF32 : b.activation_dtype(), 7, 90);
          b.linear(step.view(), *weight, in.view(), out.view());
          return floats_of(out.view());
        });
      }
    }
  }
}

TEST_P(BackendOpsTest, LinearsAreTheLinearOfEach) {
  const std::vector<float> x = bf16_floats(7 * 200, random);
  const RandomMatrix ws[] = {{90, 200, QuantFormat::kF8E4m3B128, random},
                             {33, 200, QuantFormat::kBf16, random},
                             {1, 200, QuantFormat::kF8E4m3B128, random}};
  for (const Purpose purpose : kPurposes) {
    const TestStep step(7, 7, purpose);
    compare("linears", [&](Backend& b) {
      const Tensor in = tensor(b, 7, 200, x);
      std::vector<WeightPtr> weights;
      std::vector<Tensor> out;
      std::vector<LinearOutput> outputs;
      for (const RandomMatrix& w : ws) {
        weights.push_back(b.adopt(w.row_major()).value());
        out.push_back(tensor(b, 7, weights.back()->rows()));
        outputs.push_back({weights.back().get(), out.back().view()});
      }
      b.linears(step.view(), outputs, in.view());
      std::vector<float> all;
      for (const LinearOutput& output : outputs) {
        const Tensor alone = tensor(b, 7, output.weight->rows());
        b.linear(step.view(), *output.weight, in.view(), alone.view());
        const std::vector<float> got = floats_of(output.y);
        EXPECT_EQ(got, floats_of(alone.view()));
        all.insert(all.end(), got.begin(), got.end());
      }
      return all;
    });
  }
}

TEST_P(BackendOpsTest, LogitsOfChosenRows) {
  const RandomMatrix head(33, 64, QuantFormat::kBf16, random);
  const std::vector<float> x = bf16_floats(5 * 64, random);
  TestStep step(5, 5, Purpose::kPrefill);
  step.logit_rows = {1, 4};
  compare("logits", [&](Backend& b) {
    const WeightPtr weight = b.adopt(head.row_major()).value();
    const Tensor in = tensor(b, 5, 64, x), gathered = tensor(b, 2, 64);
    const Tensor out = make_tensor(b, DType::kF32, 2, 33);
    b.gather_logit_rows(step.view(), in.view(), gathered.view());
    b.logits(step.view(), *weight, gathered.view(), out.view());
    return floats_of(out.view());
  });
}

TEST_P(BackendOpsTest, Norms) {
  const std::int64_t n = 150;
  const std::vector<float> x = bf16_floats(3 * n, random), r = bf16_floats(3 * n, random),
                           w = bf16_floats(n, random), bias = bf16_floats(n, random);
  const TestStep step(3, 3, Purpose::kDecode);
  const auto vector = [&](Backend& b, const std::vector<float>& values) {
    return b.adopt_vector(make_view(const_cast<float*>(values.data()), DType::kF32, 1, n)).value();
  };
  compare("rms_norm in place on a slice", [&](Backend& b) {
    const Tensor in = tensor(b, 3, n, x);
    const TensorView slice = in.view().col_slice(0, 100);
    b.rms_norm(step.view(), slice, vector(b, w).view(), 1e-6f, slice);
    return floats_of(in.view());
  });
  for (const bool first : {true, false}) {
    compare("add_rms_norm", [&](Backend& b) {
      const Tensor h = tensor(b, 3, n, x), residual = tensor(b, 3, n, r), out = tensor(b, 3, n);
      b.add_rms_norm(step.view(), h.view(), residual.view(), first, vector(b, w).view(), 1e-6f,
                     out.view());
      std::vector<float> both = floats_of(out.view());
      const std::vector<float> kept = floats_of(residual.view());
      both.insert(both.end(), kept.begin(), kept.end());
      return both;
    });
  }
  compare("layer_norm", [&](Backend& b) {
    const Tensor in = tensor(b, 3, n, x);
    b.layer_norm(step.view(), in.view(), vector(b, w).view(), vector(b, bias).view(), 1e-6f);
    return floats_of(in.view());
  });
}

TEST_P(BackendOpsTest, RopeOfBothStyles) {
  const int half = 8, head = 24, heads = 3;
  std::vector<float> inv_freq(half);
  for (int i = 0; i < half; ++i) inv_freq[i] = std::pow(10000.0f, -static_cast<float>(i) / half);
  const std::vector<float> x = bf16_floats(4 * heads * head, random);
  const TestStep step(4, 900, Purpose::kDecode);
  for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
    compare("rope", [&](Backend& b) {
      EXPECT_TRUE(b.set_rope(inv_freq).ok());
      const Tensor in = tensor(b, 4, heads * head, x);
      b.rope(step.view(), in.view(), heads, head, 8, 2 * half, style);
      return floats_of(in.view());
    });
  }
}

TEST_P(BackendOpsTest, ScaleAndSiluMul) {
  const std::vector<float> x = bf16_floats(2 * 50, random), y = bf16_floats(2 * 50, random);
  const TestStep step(2, 2, Purpose::kDecode);
  compare("scale", [&](Backend& b) {
    const Tensor in = make_tensor(b, DType::kF32, 2, 50, x);
    b.scale(step.view(), in.view(), 0.125f);
    return floats_of(in.view());
  });
  compare("silu_mul", [&](Backend& b) {
    const Tensor gate = tensor(b, 2, 50, x), up = tensor(b, 2, 50, y), out = tensor(b, 2, 50);
    b.silu_mul(step.view(), gate.view(), up.view(), out.view());
    return floats_of(out.view());
  });
}

TEST_P(BackendOpsTest, GatedFfnOfBothPurposes) {
  const RandomMatrix gate(70, 130, QuantFormat::kBf16, random),
      up(70, 130, QuantFormat::kBf16, random), down(130, 70, QuantFormat::kBf16, random);
  const std::vector<float> x = bf16_floats(5 * 130, random, 0.1f);
  for (const Purpose purpose : kPurposes) {
    const TestStep step(5, 5, purpose);
    compare("gated_ffn", [&](Backend& b) {
      const WeightPtr g = b.adopt(gate.row_major()).value(), u = b.adopt(up.row_major()).value(),
                      d = b.adopt(down.row_major()).value();
      const Tensor in = tensor(b, 5, 130, x), g_out = tensor(b, 5, 99), u_out = tensor(b, 5, 99),
                   out = tensor(b, 5, 130);
      b.gated_ffn(step.view(), *g, *u, *d, in.view(), g_out.view().col_slice(0, 70),
                  u_out.view().col_slice(0, 70), out.view());
      return floats_of(out.view());
    });
  }
}

// Sizes of attention: one whose heads are whole FP8 scale blocks, one whose are not.
struct AttentionShape {
  AttentionDims dims;
  QuantFormat format;
};
std::vector<AttentionShape> attention_shapes() {
  const AttentionDims small{.num_heads = 5,
                            .nope_dim = 24,
                            .rope_dim = 8,
                            .value_dim = 20,
                            .latent_dim = 40,
                            .softmax_scale = 0.2f};
  const AttentionDims blocks{.num_heads = 2,
                             .nope_dim = 128,
                             .rope_dim = 16,
                             .value_dim = 128,
                             .latent_dim = 160,
                             .softmax_scale = 0.1f};
  return {{small, QuantFormat::kBf16},
          {small, QuantFormat::kF8E4m3B128},
          {blocks, QuantFormat::kF8E4m3B128},
          {blocks, QuantFormat::kF32}};
}

TEST_P(CachedOpsTest, AttendDenseAndSelected) {
  for (const AttentionShape& shape : attention_shapes()) {
    const AttentionDims& dims = shape.dims;
    const int length = 150, num_rows = 3;
    const std::int64_t key_dim = dims.latent_dim + dims.rope_dim;
    const RandomMatrix kv_b(dims.num_heads * (dims.nope_dim + dims.value_dim), dims.latent_dim,
                            shape.format, random);
    const std::vector<float> q =
        bf16_floats(num_rows * dims.num_heads * (dims.nope_dim + dims.rope_dim), random, 0.1f);
    const std::vector<float> cached = bf16_floats(length * key_dim, random, 0.5f);
    const std::vector<std::int32_t> chosen = {0, 3, 64, 65, 100, 127, 146};
    for (const bool sparse : {false, true}) {
      compare("attend", [&](Backend& b) {
        // All but the last rows are cached by a step of their own.
        const TestStep fill(length, length, Purpose::kPrefill);
        const TestStep step(num_rows, length, 1, Purpose::kPrefill);
        const Tensor cache = make_cache(b, step.cache_rows(), latent_row(dims));
        const KvLayer latents = {cache.view(), latent_row(dims)};
        const Tensor keys = tensor(b, length, key_dim, cached);
        b.append_latent(fill.view(), keys.view(), latents);
        const WeightPtr weight = b.adopt_kv_b(kv_b.row_major(), dims).value();
        const Tensor queries = tensor(b, num_rows, q.size() / num_rows, q);
        const Tensor out = tensor(b, num_rows, dims.num_heads * dims.value_dim);
        const Tensor positions = b.allocate(DType::kI32, num_rows, 7).value();
        const Tensor counts = b.allocate(DType::kI32, num_rows, 1).value();
        for (int t = 0; t < num_rows; ++t) {
          std::copy(chosen.begin(), chosen.end(), positions.view().row<std::int32_t>(t));
          counts.view().row<std::int32_t>(t)[0] = t == 1 ? -1 : 7;
        }
        const Selection selection{positions.view(), counts.view()};
        b.attend(step.view(), {dims, queries.view(), weight.get(), latents,
                               sparse ? &selection : nullptr, out.view()});
        return floats_of(out.view());
      });
    }
  }
}

TEST_P(CachedOpsTest, SelectTakesTheBestScores) {
  const int head_dim = GetParam().kv == KvFormat::kFp8 ? 32 : 24;  // 32: can be rotated
  const IndexerDims dims{.num_heads = 5, .head_dim = head_dim, .top_k = 40};
  const int length = 150, num_rows = 4;
  const std::vector<float> cached = bf16_floats(length * dims.head_dim, random);
  const std::vector<float> q = bf16_floats(num_rows * dims.num_heads * dims.head_dim, random);
  const std::vector<float> w = bf16_floats(num_rows * dims.num_heads, random);
  for (const int last : {150, 41}) {  // 41: rows below and at top_k visible positions, and above
    std::vector<std::vector<std::int32_t>> found;
    for (Backend* b : {reference.get(), backend.get()}) {
      const TestStep fill(last, last, Purpose::kPrefill);
      const TestStep step(num_rows, last, Purpose::kDecode);
      const Tensor cache = make_cache(*b, fill.cache_rows(), index_key_row(dims));
      const KvLayer layer = {cache.view(), index_key_row(dims)};
      const Tensor keys = tensor(*b, length, dims.head_dim, cached);
      b->append_index_key(fill.view(), keys.view().row_slice(0, last), layer);
      const Tensor queries = tensor(*b, num_rows, dims.num_heads * dims.head_dim, q);
      const Tensor weights = make_tensor(*b, DType::kF32, num_rows, dims.num_heads, w);
      const Tensor positions = b->allocate(DType::kI32, num_rows, dims.top_k).value();
      const Tensor counts = b->allocate(DType::kI32, num_rows, 1).value();
      b->select(step.view(),
                {dims, queries.view(), weights.view(), layer, {positions.view(), counts.view()}});
      const auto* data = positions.view().row<std::int32_t>(0);
      const auto* count = counts.view().row<std::int32_t>(0);
      found.emplace_back(data, data + num_rows * dims.top_k);
      found.back().insert(found.back().end(), count, count + num_rows);
    }
    EXPECT_EQ(found[0], found[1]);
  }
}

// What comes of it is what its operations give in the order of Backend::prepare_attention().
TEST_P(CachedOpsTest, PrepareAttentionIsItsSingleOperations) {
  const AttentionDims dims = attention_shapes().front().dims;
  const IndexerDims indexer{.num_heads = 3, .head_dim = 32, .top_k = 16};
  const int num_rows = 3, key_dim = dims.latent_dim + dims.rope_dim;
  const std::vector<float> inv_freq = {1.0f, 0.1f, 0.01f, 0.001f};
  const std::vector<float> q =
      bf16_floats(num_rows * dims.num_heads * (dims.nope_dim + dims.rope_dim), random);
  const std::vector<float> kv_a = bf16_floats(num_rows * key_dim, random);
  const std::vector<float> k = bf16_floats(num_rows * indexer.head_dim, random);
  const std::vector<float> index_q =
      bf16_floats(num_rows * indexer.num_heads * indexer.head_dim, random);
  const std::vector<float> w = bf16_floats(num_rows * indexer.num_heads, random);
  const std::vector<float> norm = bf16_floats(dims.latent_dim, random),
                           index_norm = bf16_floats(indexer.head_dim, random),
                           index_bias = bf16_floats(indexer.head_dim, random);
  const TestStep step(num_rows, 70, Purpose::kDecode);
  const auto view_of = [](const std::vector<float>& values) {
    return make_view(const_cast<float*>(values.data()), DType::kF32, 1,
                     static_cast<std::int64_t>(values.size()));
  };
  // All tensors after `prepare`, byte for byte.
  const auto after = [&](Backend& b, bool has_indexer, const auto& prepare) {
    const Tensor queries = tensor(b, num_rows, q.size() / num_rows, q);
    const Tensor kv = tensor(b, num_rows, key_dim, kv_a);
    const Tensor key = tensor(b, num_rows, indexer.head_dim, k);
    const Tensor index_queries = tensor(b, num_rows, index_q.size() / num_rows, index_q);
    const Tensor weights = make_tensor(b, DType::kF32, num_rows, indexer.num_heads, w);
    const Tensor latents = make_cache(b, step.cache_rows(), latent_row(dims));
    const Tensor keys = make_cache(b, step.cache_rows(), index_key_row(indexer));
    const Tensor norm_weight = b.adopt_vector(view_of(norm)).value();
    const Tensor index_norm_weight = b.adopt_vector(view_of(index_norm)).value();
    const Tensor index_norm_bias = b.adopt_vector(view_of(index_bias)).value();
    const IndexInputParams index{.dims = indexer,
                                 .key = key.view(),
                                 .norm_weight = index_norm_weight.view(),
                                 .norm_bias = index_norm_bias.view(),
                                 .norm_eps = 1e-6f,
                                 .queries = index_queries.view(),
                                 .weights = weights.view(),
                                 .weight_factor = 0.3f,
                                 .keys = {keys.view(), index_key_row(indexer)}};
    prepare(AttentionInputParams{.dims = dims,
                                 .queries = queries.view(),
                                 .kv_a = kv.view(),
                                 .norm_weight = norm_weight.view(),
                                 .norm_eps = 1e-5f,
                                 .latents = {latents.view(), latent_row(dims)},
                                 .indexer = has_indexer ? &index : nullptr});
    EXPECT_TRUE(b.finish().ok());
    std::vector<std::byte> bytes;
    for (const Tensor* t : {&queries, &latents, &index_queries, &weights, &keys}) {
      const std::byte* const begin = t->view().row<std::byte>(0);
      bytes.insert(bytes.end(), begin, begin + t->view().bytes());
    }
    return bytes;
  };
  for (Backend* b : {reference.get(), backend.get()}) {
    ASSERT_TRUE(b->set_rope(inv_freq).ok());
    for (const bool has_indexer : {false, true}) {
      const auto together = after(*b, has_indexer, [&](const AttentionInputParams& p) {
        b->prepare_attention(step.view(), p);
      });
      const auto one_by_one = after(*b, has_indexer, [&](const AttentionInputParams& p) {
        const TensorView latent = p.kv_a.col_slice(0, dims.latent_dim);
        b->rope(step.view(), p.queries, dims.num_heads, dims.nope_dim + dims.rope_dim,
                dims.nope_dim, dims.rope_dim, RopeStyle::kInterleaved);
        b->rms_norm(step.view(), latent, p.norm_weight, p.norm_eps, latent);
        b->rope(step.view(), p.kv_a, 1, 0, dims.latent_dim, dims.rope_dim, RopeStyle::kInterleaved);
        b->append_latent(step.view(), p.kv_a, p.latents);
        if (p.indexer == nullptr) return;
        const IndexInputParams& i = *p.indexer;
        b->layer_norm(step.view(), i.key, i.norm_weight, i.norm_bias, i.norm_eps);
        b->rope(step.view(), i.key, 1, 0, 0, dims.rope_dim, RopeStyle::kHalfSplit);
        b->append_index_key(step.view(), i.key, i.keys);
        b->rope(step.view(), i.queries, indexer.num_heads, indexer.head_dim, 0, dims.rope_dim,
                RopeStyle::kHalfSplit);
        b->scale(step.view(), i.weights, i.weight_factor);
      });
      EXPECT_EQ(together, one_by_one) << "indexer: " << has_indexer;
    }
  }
}

// Decoding is exact: attention over FP8 rows gives the bits of attention over their values in BF16.
TEST(Fp8Cache, IsABf16CacheOfItsValues) {
  std::mt19937 random(31);
  Team team(2);
  const AttentionDims dims{.num_heads = 5,
                           .nope_dim = 24,
                           .rope_dim = 9,
                           .value_dim = 20,
                           .latent_dim = 301,
                           .softmax_scale = 0.2f};
  const KvRow row = latent_row(dims);
  const int length = 150, num_values = row.num_values();
  const RandomMatrix kv_b(dims.num_heads * (dims.nope_dim + dims.value_dim), dims.latent_dim,
                          QuantFormat::kBf16, random);
  const std::vector<float> q = bf16_floats(2 * dims.num_heads * 33, random, 0.1f);
  const std::vector<float> values = bf16_floats(192 * num_values, random, 0.5f);
  std::vector<float> kept(values.size());
  std::vector<std::byte> bytes(quant::kv_row_layout(row).bytes);
  for (int i = 0; i < 192; ++i) {
    quant::encode_kv_row(row, &values[i * num_values], bytes.data());
    quant::decode_kv_row(row, bytes.data(), &kept[i * num_values]);
  }
  for (const Isa isa : available_isas()) {
    std::vector<std::vector<float>> results;
    for (const KvFormat kv : {KvFormat::kFp8, KvFormat::kBf16}) {
      const auto b = cpu_backend(team, isa, DType::kBf16, kv);
      const TestStep step(2, length, Purpose::kDecode);
      const Tensor cache = make_cache(*b, 192, row, kv == KvFormat::kFp8 ? values : kept);
      const WeightPtr weight = b->adopt_kv_b(kv_b.row_major(), dims).value();
      const Tensor queries = make_tensor(*b, DType::kBf16, 2, q.size() / 2, q);
      const Tensor out = make_tensor(*b, DType::kBf16, 2, dims.num_heads * dims.value_dim);
      b->attend(step.view(),
                {dims, queries.view(), weight.get(), {cache.view(), row}, nullptr, out.view()});
      results.push_back(floats_of(out.view()));
    }
    EXPECT_EQ(results[0], results[1]) << isa_name(isa);
  }
}

TEST_P(BackendOpsTest, RouteAndCombine) {
  const RouterSpec spec{.num_experts = 16,
                        .top_k = 4,
                        .num_groups = 4,
                        .top_groups = 2,
                        .normalise = true,
                        .scaling = 2.5f};
  const std::vector<float> logits = random_floats(3 * 16, random), bias = random_floats(16, random);
  const std::vector<float> parts = bf16_floats(12 * 50, random),
                           shared = bf16_floats(3 * 50, random);
  const TestStep step(3, 3, Purpose::kDecode);
  compare("route and combine", [&](Backend& b) {
    std::vector<std::int32_t> experts(12), slots(12);
    std::vector<float> weights(12);
    const Tensor in = make_tensor(b, DType::kF32, 3, 16, logits);
    const Tensor by = make_tensor(b, DType::kF32, 1, 16, bias);
    b.route(step.view(), {spec, in.view(), by.view(), {}, {experts, weights}});
    std::iota(slots.begin(), slots.end(), 0);
    const Tensor out = tensor(b, 3, 50);
    b.combine(step.view(), {tensor(b, 12, 50, parts).view(), slots, weights,
                            tensor(b, 3, 50, shared).view(), out.view()});
    std::vector<float> all = floats_of(out.view());
    all.insert(all.end(), experts.begin(), experts.end());
    return all;
  });
}

TEST_P(BackendOpsTest, ExpertsOfMixedPurposes) {
  const std::int64_t hidden = 200, inter = 72;
  for (const QuantSpec& spec :
       {QuantSpec{QuantFormat::kF8E4m3B128}, QuantSpec{QuantFormat::kBf16},
        QuantSpec{QuantFormat::kInt8, 128}, QuantSpec{QuantFormat::kInt4, 64}}) {
    SCOPED_TRACE(quant_spec_name(spec));
    const TestExperts experts(3, hidden, inter, spec, random);
    const std::vector<float> x = bf16_floats(6 * hidden, random, 0.1f);
    const TestStep step(6, 6, 3, Purpose::kPrefill);
    const std::vector<std::int32_t> rows0 = {0, 2, 4}, rows2 = {1, 2, 3, 4, 5};
    const std::vector<float> ones(6, 1.0f);
    const std::vector<ExpertUse> uses = {
        {.expert = 0, .rows = rows0, .weights = ones, .num_decode_rows = 2, .slot_begin = 0},
        {.expert = 2, .rows = rows2, .weights = ones, .num_decode_rows = 2, .slot_begin = 3}};
    const std::vector<ExpertPart> parts = experts.parts(uses);
    const auto run = [&](Backend& b) {
      const Tensor in = tensor(b, 6, hidden, x), mid = tensor(b, 8, inter),
                   out = tensor(b, 8, hidden);
      b.experts(step.view(), {in.view(), mid.view(), out.view(), uses, parts});
      return floats_of(out.view());
    };
    compare("experts", run);
    if (GetParam().dtype == DType::kF32) {  // decode slots 0, 1, 3, 4: the defined arithmetic
      const std::vector<float> expected = run(*reference), got = run(*backend);
      for (const int slot : {0, 1, 3, 4}) {
        for (std::int64_t i = slot * hidden; i < (slot + 1) * hidden; ++i) {
          ASSERT_EQ(f32_to_bits(got[i]), f32_to_bits(expected[i])) << "slot " << slot;
        }
      }
    }
  }
}

TEST_P(BackendOpsTest, BadWeightsAreErrors) {
  std::vector<std::uint8_t> codes(16 * 128, 0x38);
  codes[77] = 0x7f;
  const float scale = 1.0f;
  QuantView view;
  view.payload = reinterpret_cast<const std::byte*>(codes.data());
  view.scales = reinterpret_cast<const std::byte*>(&scale);
  view.rows = 16;
  view.cols = 128;
  view.spec.format = QuantFormat::kF8E4m3B128;
  EXPECT_EQ(backend->adopt(view).error().code(), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace stoker
