// What a row's bits must not depend on: other rows, its place among them, and the thread count.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/cpu/backend_harness.h"

namespace stoker {
namespace {

struct Case {
  Isa isa;
  DType dtype;
  KvFormat kv;
};

class InvarianceTest : public ::testing::TestWithParam<Case> {
 protected:
  std::mt19937 random{23};
};
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Isa isa : available_isas()) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const KvFormat kv : {kv_format_like(dtype), KvFormat::kFp8}) {
        all.push_back({isa, dtype, kv});
      }
    }
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Cpu, InvarianceTest, ::testing::ValuesIn(cases()), [](const auto& info) {
  const Case& c = info.param;
  return fmt::format("{}_{}_{}", isa_name(c.isa), dtype_name(c.dtype), kv_format_name(c.kv));
});

// A sparse-attention MoE layer's worth of operations over num_rows rows at the end of a context.
struct Layer {
  static constexpr std::int64_t kHidden = 200, kInter = 72, kQuery = 5 * 32;
  static constexpr int kLength = 200, kMostRows = 130;

  explicit Layer(std::mt19937& random)
      : q(kQuery, kHidden, QuantFormat::kF8E4m3B128, random),
        gate(90, kHidden, QuantFormat::kBf16, random),
        up(90, kHidden, QuantFormat::kBf16, random),
        down(kHidden, 90, QuantFormat::kBf16, random),
        kv_b(dims.num_heads * (dims.nope_dim + dims.value_dim), dims.latent_dim,
             QuantFormat::kF8E4m3B128, random),
        experts(2, kHidden, kInter, QuantSpec{QuantFormat::kF8E4m3B128}, random),
        x(bf16_floats(kMostRows * kHidden, random, 0.1f)),
        cached(bf16_floats(256 * 48, random, 0.5f)),
        index_keys(bf16_floats(256 * 32, random)),
        index_weights(bf16_floats(5, random)) {}

  // The bits that come out for `rows` (indices into the kMostRows rows), in that order. Each row's
  // position is fixed by its index.
  std::vector<float> run(Backend& b, const std::vector<int>& rows, int num_decode) const;

  AttentionDims dims{.num_heads = 5,
                     .nope_dim = 24,
                     .rope_dim = 8,
                     .value_dim = 20,
                     .latent_dim = 40,
                     .softmax_scale = 0.2f};
  IndexerDims indexer{.num_heads = 5, .head_dim = 32, .top_k = 50};
  RandomMatrix q, gate, up, down, kv_b;
  TestExperts experts;
  std::vector<float> x, cached, index_keys, index_weights;
};

std::vector<float> Layer::run(Backend& b, const std::vector<int>& rows, int num_decode) const {
  const auto num_rows = static_cast<int>(rows.size());
  TestStep step(num_rows, kLength, num_decode, Purpose::kPrefill);
  std::vector<float> in_values, weight_values;
  for (int t = 0; t < num_rows; ++t) {
    step.positions[t] = kLength - kMostRows + rows[t];
    in_values.insert(in_values.end(), &x[rows[t] * kHidden], &x[rows[t] * kHidden] + kHidden);
    weight_values.insert(weight_values.end(), index_weights.begin(), index_weights.end());
  }
  const DType dtype = b.activation_dtype();
  const Tensor in = make_tensor(b, dtype, num_rows, kHidden, in_values);
  const Tensor queries = make_tensor(b, dtype, num_rows, kQuery);
  const Tensor mixed = make_tensor(b, dtype, num_rows, dims.num_heads * dims.value_dim);
  const Tensor wide = make_tensor(b, DType::kF32, num_rows, kQuery);
  const Tensor gate_out = make_tensor(b, dtype, num_rows, 90),
               up_out = make_tensor(b, dtype, num_rows, 90);
  const Tensor ffn = make_tensor(b, dtype, num_rows, kHidden);
  const KvRow latent = latent_row(dims), key = index_key_row(indexer);
  const Tensor latents = make_cache(b, 256, latent, cached);
  const Tensor keys = make_cache(b, 256, key, index_keys);
  const Tensor weights = make_tensor(b, DType::kF32, num_rows, 5, weight_values);
  const Tensor positions = b.allocate(DType::kI32, num_rows, indexer.top_k).value();
  const Tensor counts = b.allocate(DType::kI32, num_rows, 1).value();
  const Tensor hidden = make_tensor(b, dtype, 2 * num_rows, kInter);
  const Tensor out = make_tensor(b, dtype, 2 * num_rows, kHidden);
  const WeightPtr wq = b.adopt(q.row_major()).value(), wg = b.adopt(gate.row_major()).value(),
                  wu = b.adopt(up.row_major()).value(), wd = b.adopt(down.row_major()).value(),
                  wkv = b.adopt_kv_b(kv_b.row_major(), dims).value();
  const StepView view = step.view();
  EXPECT_TRUE(b.begin_step(view).ok());
  b.linear(view, *wq, in.view(), queries.view());
  b.linear(view, *wq, in.view(), wide.view());
  const Selection selection{positions.view(), counts.view()};
  b.select(view, {indexer, queries.view(), weights.view(), {keys.view(), key}, selection});
  b.attend(view,
           {dims, queries.view(), wkv.get(), {latents.view(), latent}, &selection, mixed.view()});
  b.gated_ffn(view, *wg, *wu, *wd, in.view(), gate_out.view(), up_out.view(), ffn.view());
  // Every row uses both experts.
  std::vector<std::int32_t> all(num_rows);
  for (int t = 0; t < num_rows; ++t) all[t] = t;
  const std::vector<float> ones(num_rows, 1.0f);
  const std::vector<ExpertUse> uses = {
      {.expert = 0, .rows = all, .weights = ones, .num_decode_rows = num_decode, .slot_begin = 0},
      {.expert = 1,
       .rows = all,
       .weights = ones,
       .num_decode_rows = num_decode,
       .slot_begin = num_rows}};
  const std::vector<ExpertPart> parts = experts.parts(uses);
  b.experts(view, {in.view(), hidden.view(), out.view(), uses, parts});
  EXPECT_TRUE(b.finish().ok());

  std::vector<float> bits;  // row by row
  for (int t = 0; t < num_rows; ++t) {
    for (const TensorView& part :
         {queries.view().row_slice(t, 1), wide.view().row_slice(t, 1), mixed.view().row_slice(t, 1),
          ffn.view().row_slice(t, 1), out.view().row_slice(t, 1),
          out.view().row_slice(num_rows + t, 1)}) {
      const std::vector<float> values = floats_of(part);
      bits.insert(bits.end(), values.begin(), values.end());
    }
    const auto* chosen = positions.view().row<std::int32_t>(t);
    bits.insert(bits.end(), chosen, chosen + indexer.top_k);
  }
  return bits;
}

TEST_P(InvarianceTest, ARowIsTheSameAloneAndAmongOthers) {
  const Layer layer(random);
  Team team(2);
  const auto backend = cpu_backend(team, GetParam().isa, GetParam().dtype, GetParam().kv);
  const bool scalar = GetParam().isa == Isa::kScalar;  // slow: fewer rows
  std::vector<int> order(Layer::kMostRows);
  for (int i = 0; i < Layer::kMostRows; ++i) order[i] = i;
  for (const bool prefill : {false, true}) {
    const std::vector<float> whole = layer.run(*backend, order, prefill ? 0 : Layer::kMostRows);
    const std::size_t row_size = whole.size() / order.size();
    const auto expect_row = [&](const std::vector<float>& bits, std::size_t at, int row,
                                std::size_t num_rows) {
      for (std::size_t i = 0; i < row_size; ++i) {
        ASSERT_EQ(f32_to_bits(bits[at * row_size + i]), f32_to_bits(whole[row * row_size + i]))
            << (prefill ? "prefill" : "decode") << " row " << row << " at " << at << " of "
            << num_rows << ", value " << i;
      }
    };
    for (const std::size_t num_rows : {1, 2, 3, 63, 64, 65, 129, 130}) {
      if (scalar && num_rows > 3) continue;
      std::vector<int> some = order;
      std::shuffle(some.begin(), some.end(), random);
      some.resize(num_rows);
      const std::vector<float> bits =
          layer.run(*backend, some, prefill ? 0 : static_cast<int>(num_rows));
      for (std::size_t at = 0; at < num_rows; ++at) expect_row(bits, at, some[at], num_rows);
    }
    // Beside rows of the other purpose.
    const std::vector<int> mixed = {7, 90, 20, 64};
    const std::vector<float> bits = layer.run(*backend, mixed, 2);
    for (const std::size_t at : {0, 1})
      expect_row(bits, at + (prefill ? 2 : 0), mixed[at + (prefill ? 2 : 0)], 4);
  }
}

TEST_P(InvarianceTest, ThreadCountDoesNotMatter) {
  const Layer layer(random);
  const std::vector<int> rows = {3, 50, 7, 128, 90};
  std::vector<float> expected;
  for (const int num_threads : {1, 2, 3}) {
    Team team(num_threads);
    const auto backend = cpu_backend(team, GetParam().isa, GetParam().dtype, GetParam().kv);
    const std::vector<float> bits = layer.run(*backend, rows, 2);
    if (expected.empty()) expected = bits;
    ASSERT_TRUE(std::equal(bits.begin(), bits.end(), expected.begin(), expected.end(),
                           [](float a, float b) { return f32_to_bits(a) == f32_to_bits(b); }))
        << num_threads << " threads";
  }
}

TEST(Invariance, DecodeIsTheSameOnEveryIsa) {
  std::mt19937 random(29);
  const Layer layer(random);
  Team team(1);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    std::vector<float> expected;
    for (const Isa isa : available_isas()) {
      const auto backend = cpu_backend(team, isa, dtype);
      // Queries, FFN and experts; attention sums in the order of the vector width.
      const std::vector<float> bits = layer.run(*backend, {5}, 1);
      std::vector<float> defined(bits.begin(), bits.begin() + 2 * Layer::kQuery);
      const std::size_t mixed = 5 * 20;
      defined.insert(defined.end(), bits.begin() + 2 * Layer::kQuery + mixed,
                     bits.begin() + 2 * Layer::kQuery + mixed + 3 * Layer::kHidden);
      if (expected.empty()) expected = defined;
      EXPECT_EQ(defined, expected) << isa_name(isa);
    }
  }
}

}  // namespace
}  // namespace stoker
