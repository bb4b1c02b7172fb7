// Kernels that start before the one before them is complete: the same bits as in order.
#include <gtest/gtest.h>

#include "tests/gpu/cuda_test.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::kTinyRunner;
using test::random_tokens;
using test::TinyEngine;
using test::TinyPaging;
using Rows = std::vector<std::vector<float>>;

class CudaOverlap : public CudaTest {
 protected:
  // Logits of prompts, and of many steps of one and of two rows.
  static Rows decode(const CudaBackendOptions& options, const std::string& config) {
    auto backend = make_backend(options);
    TinyPaging paging;
    paging.manager.site = backend->device();
    paging.num_slots = 24;
    TinyEngine engine(config, std::move(backend), kTinyRunner, nullptr, paging);
    std::vector<KvSequence> sequences;
    for (const int length : {5, 90}) {
      sequences.push_back(engine.sequence());
      engine.feed(sequences.back(), random_tokens(length, engine.config().vocab_size, 60),
                  Purpose::kPrefill, Logits::kNone);
    }
    Rows rows;
    for (int i = 0; i < 120; ++i) {
      std::vector<Segment> segments;
      std::vector<TokenId> tokens;
      for (int s = 0; s <= i % 2; ++s) {
        segments.push_back(
            {&sequences[static_cast<std::size_t>(s)], s, 1, Purpose::kDecode, Logits::kLast});
        tokens.push_back((5 * i + 3 + s) % engine.config().vocab_size);
      }
      const ForwardPtr forward = engine.runner().run({tokens, segments}).value();
      const Rows step = TinyEngine::rows_of(*forward);
      rows.insert(rows.end(), step.begin(), step.end());
    }
    return rows;
  }

  static void expect_same(const CudaBackendOptions& options, const std::string& config) {
    CudaBackendOptions in_order = options;
    in_order.overlap_launches = false;
    in_order.most_graphs = 0;
    const Rows expected = decode(in_order, config);
    for (const int most_graphs : {0, options.most_graphs}) {
      CudaBackendOptions overlapped = options;
      overlapped.most_graphs = most_graphs;
      const Rows got = decode(overlapped, config);
      ASSERT_EQ(got.size(), expected.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i], expected[i]) << "row " << i << ", graphs: " << most_graphs;
      }
    }
  }
};

TEST_P(CudaOverlap, ChangesNoBit) {
  expect_same(options_for(GetParam()), test::tiny_config());
  expect_same(options_for(GetParam()), test::tiny_config("deepseek_v3"));
}

TEST_P(CudaOverlap, ChangesNoBitOnTensorCores) {
  CudaBackendOptions options = options_for(GetParam());
  options.fast_experts = true;
  expect_same(options, test::tiny_config_for_tensor_cores());
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaOverlap, testing::ValuesIn(kCacheTypes), types_of_test);

}  // namespace
}  // namespace stoker
