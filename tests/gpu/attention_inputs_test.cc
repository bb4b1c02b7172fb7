// What stands between attention's linears and attention, in one launch: the bits that the single
// operations give.
#include <gtest/gtest.h>

#include "tests/gpu/cuda_test.h"

namespace stoker {
namespace {

using Bytes = std::vector<std::byte>;

struct Shape {
  AttentionDims dims;
  IndexerDims indexer;
};
// The published one, and two with ragged ends: fewer columns than threads, and more.
constexpr Shape kShapes[] = {
    {.dims =
         {.num_heads = 128, .nope_dim = 128, .rope_dim = 64, .value_dim = 128, .latent_dim = 512},
     .indexer = {.num_heads = 64, .head_dim = 128, .top_k = 2048}},
    {.dims = {.num_heads = 5, .nope_dim = 11, .rope_dim = 6, .value_dim = 8, .latent_dim = 135},
     .indexer = {.num_heads = 3, .head_dim = 32, .top_k = 16}},
    {.dims = {.num_heads = 3, .nope_dim = 24, .rope_dim = 20, .value_dim = 8, .latent_dim = 777},
     .indexer = {.num_heads = 300, .head_dim = 512, .top_k = 16}}};

class CudaAttentionInputs : public CudaTest {
 protected:
  Bytes bytes_of(const TensorView& view) {
    Bytes bytes(view.bytes());
    backend->copy_out(bytes.data(), view);
    expect_fine();
    return bytes;
  }
  Tensor vector(const Values& values) {
    auto tensor = backend->adopt_vector(
        make_view(const_cast<float*>(values.data.data()), DType::kF32, 1, values.cols));
    CHECK(tensor.ok(), "{}", tensor.error().message());
    return std::move(tensor).value();
  }
  Tensor cache(const TestStep& step, const KvRow& row) {
    const KvMatrix matrix = kv_matrix(backend->kv_format(), row);
    return empty(matrix.dtype, step.cache_rows(), matrix.cols);
  }

  // All that attention reads after `prepare`, of the same inputs each time. Operands are slices, as
  // wide as their tensors but for the first column.
  template <typename F>
  std::vector<Bytes> results(const Shape& shape, const TestStep& step, bool has_indexer,
                             F&& prepare) {
    const AttentionDims& dims = shape.dims;
    const IndexerDims& indexer = shape.indexer;
    Random random(18);
    const auto input = [&](std::int64_t cols, DType dtype, float range) {
      return upload(random.values(step.num_rows(), 1 + cols, dtype, range), dtype);
    };
    const auto sliced = [](const Tensor& tensor) {
      return tensor.view().col_slice(1, tensor.view().cols - 1);
    };
    const Tensor queries =
        input(dims.num_heads * (dims.nope_dim + dims.rope_dim), activation, 1.0f);
    const Tensor kv_a = input(dims.latent_dim + dims.rope_dim, activation, 3.0f);
    const Tensor key = input(indexer.head_dim, activation, 3.0f);
    const Tensor index_queries = input(indexer.num_heads * indexer.head_dim, activation, 1.0f);
    const Tensor index_weights = input(indexer.num_heads, DType::kF32, 1.0f);
    const Tensor norm = vector(random.values(1, dims.latent_dim));
    const Tensor key_norm = vector(random.values(1, indexer.head_dim));
    const Tensor key_bias = vector(random.values(1, indexer.head_dim));
    const Tensor latents = cache(step, latent_row(dims));
    const Tensor keys = cache(step, index_key_row(indexer));
    const IndexInputParams index_inputs{.dims = indexer,
                                        .key = sliced(key),
                                        .norm_weight = key_norm.view(),
                                        .norm_bias = key_bias.view(),
                                        .norm_eps = 1e-6f,
                                        .queries = sliced(index_queries),
                                        .weights = sliced(index_weights),
                                        .weight_factor = 0.3f,
                                        .keys = {keys.view(), index_key_row(indexer)}};
    prepare(AttentionInputParams{.dims = dims,
                                 .queries = sliced(queries),
                                 .kv_a = sliced(kv_a),
                                 .norm_weight = norm.view(),
                                 .norm_eps = 1e-5f,
                                 .latents = {latents.view(), latent_row(dims)},
                                 .indexer = has_indexer ? &index_inputs : nullptr});
    std::vector<Bytes> all;
    for (const Tensor* tensor : {&queries, &latents, &index_queries, &index_weights, &keys}) {
      all.push_back(bytes_of(tensor->view()));
    }
    return all;
  }
};

TEST_P(CudaAttentionInputs, AreThoseOfTheSingleOperations) {
  const TestStep one({{1000, 1}}), three({{70, 2}, {131, 1}}),
      many({{70, 8}, {1300, 8, Purpose::kPrefill}, {1, 1}});
  static constexpr const char* kNames[] = {"queries", "latents", "queries of the indexer",
                                           "weights of the indexer", "keys of the indexer"};
  for (const Shape& shape : kShapes) {
    std::vector<float> inv_freq;
    for (int i = 0; i < shape.dims.rope_dim / 2; ++i) {
      inv_freq.push_back(std::pow(
          10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(shape.dims.rope_dim)));
    }
    ASSERT_TRUE(backend->set_rope(inv_freq).ok());
    for (const TestStep* step : {&one, &three, &many}) {
      begin(*step);
      for (const bool has_indexer : {false, true}) {
        const auto expected =
            results(shape, *step, has_indexer, [&](const AttentionInputParams& params) {
              backend->Backend::prepare_attention(step->view, params);
            });
        const auto got =
            results(shape, *step, has_indexer, [&](const AttentionInputParams& params) {
              backend->prepare_attention(step->view, params);
            });
        for (std::size_t i = 0; i < got.size(); ++i) {
          EXPECT_TRUE(got[i] == expected[i])
              << kNames[i] << " of " << step->num_rows() << " rows, " << shape.dims.num_heads
              << " heads, indexer: " << has_indexer;
        }
      }
    }
  }
}

constexpr CudaTypes kTypes[] = {{DType::kBf16, KvFormat::kBf16}, {DType::kBf16, KvFormat::kF32},
                                {DType::kBf16, KvFormat::kFp8},  {DType::kF32, KvFormat::kBf16},
                                {DType::kF32, KvFormat::kF32},   {DType::kF32, KvFormat::kFp8}};
INSTANTIATE_TEST_SUITE_P(Caches, CudaAttentionInputs, testing::ValuesIn(kTypes), types_of_test);

}  // namespace
}  // namespace stoker
