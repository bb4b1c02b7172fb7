// A tiny random model from tokens to logits on the CUDA backend, experts uploaded from host memory.
#include <gtest/gtest.h>

#include "cpu/reference_backend.h"
#include "tests/gpu/cuda_test.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::random_tokens;
using test::tiny_config;
using test::TinyEngine;
using test::TinyPaging;
using Rows = std::vector<std::vector<float>>;

constexpr int kTokens = 80;  // more than a page, and than index_topk

class CudaModel : public CudaTest {
 protected:
  // Experts are paged into host memory, and computed on the device of `backends`.
  static TinyEngine engine_on(const std::string& config, EngineBackends backends) {
    TinyPaging paging;
    paging.manager.site = backends.backends.front()->device();
    return {config, std::move(backends), test::kTinyRunner, nullptr, paging};
  }
  TinyEngine on_cuda(const std::string& config = tiny_config()) {
    return engine_on(config, make_backend(GetParam()));
  }

  static Rows prefill(TinyEngine& engine, std::span<const TokenId> tokens) {
    KvSequence kv = engine.sequence();
    return engine.feed(kv, tokens, Purpose::kPrefill, Logits::kAll);
  }
};

TEST_P(CudaModel, LogitsAreTheReferences) {
  if (GetParam().kv != KvFormat::kF32) GTEST_SKIP() << "the reference rounds nothing";
  for (const char* type : {"deepseek_v32", "deepseek_v3"}) {
    for (const char* dtype : {"fp8", "bf16", "f32"}) {
      SCOPED_TRACE(fmt::format("{} {}", type, dtype));
      TinyEngine engine = on_cuda(tiny_config(type, dtype));
      TinyEngine reference(tiny_config(type, dtype), std::make_unique<ReferenceBackend>());
      const auto tokens = random_tokens(kTokens, engine.config().vocab_size, 1);
      const Rows got = prefill(engine, tokens), expected = prefill(reference, tokens);
      ASSERT_EQ(got.size(), expected.size());
      for (std::size_t row = 0; row < got.size(); ++row) {
        double wrong = 0, size = 0;
        for (std::size_t i = 0; i < got[row].size(); ++i) {
          const double error = got[row][i] - expected[row][i];
          wrong += error * error;
          size += double{expected[row][i]} * expected[row][i];
        }
        EXPECT_LE(std::sqrt(wrong), 1e-4 * std::sqrt(size)) << "row " << row;
      }
    }
  }
}

TEST_P(CudaModel, ChunksAndBatchesChangeNoBit) {
  TinyEngine engine = on_cuda();
  const auto a = random_tokens(kTokens, engine.config().vocab_size, 2);
  const auto b = random_tokens(23, engine.config().vocab_size, 3);
  const Rows whole = prefill(engine, a), other = prefill(engine, b);
  // Token by token.
  KvSequence kv = engine.sequence();
  for (std::size_t i = 0; i < a.size(); ++i) {
    const Rows one = engine.feed(kv, std::span(a).subspan(i, 1), Purpose::kPrefill, Logits::kLast);
    ASSERT_EQ(one.front(), whole[i]) << "row " << i;
  }
  // The last token of one, decoded alone and beside the whole of another.
  KvSequence kv_alone = engine.sequence(), kv_a = engine.sequence(), kv_b = engine.sequence();
  engine.feed(kv_alone, std::span(a).first(kTokens - 1), Purpose::kPrefill, Logits::kNone);
  const Rows alone = engine.feed(kv_alone, std::span(a).last(1), Purpose::kDecode, Logits::kLast);
  engine.feed(kv_a, std::span(a).first(kTokens - 1), Purpose::kPrefill, Logits::kNone);
  std::vector<TokenId> both = {a.back()};
  both.insert(both.end(), b.begin(), b.end());
  const Segment segments[] = {
      {&kv_a, 0, 1, Purpose::kDecode, Logits::kLast},
      {&kv_b, 1, static_cast<int>(b.size()), Purpose::kPrefill, Logits::kAll}};
  const ForwardPtr forward = engine.runner().run({both, segments}).value();
  Rows together = TinyEngine::rows_of(*forward);
  EXPECT_EQ(together.front(), alone.front());
  together.erase(together.begin());
  EXPECT_EQ(together, other);
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaModel, testing::ValuesIn(kCacheTypes), types_of_test);

}  // namespace
}  // namespace stoker
