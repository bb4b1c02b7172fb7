// Kernels that start before the one before them is complete: the same bits as in order.
#include <gtest/gtest.h>

#include "tests/gpu/decode_run.h"
#include "tests/support/published_configs.h"

namespace stoker {
namespace {

class CudaOverlap : public CudaTest {
 protected:
  // Logits of prompts, and of many steps of one and of two rows.
  static Rows decode(const CudaBackendOptions& options, const std::string& config) {
    DecodeRun run(make_backend(options), config);
    run.start({5, 90});
    Rows rows;
    for (int i = 0; i < 120; i += 2) {
      run.step(rows, {0}, i);
      run.step(rows, {0, 1}, i + 1);
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
      SCOPED_TRACE(testing::Message() << "graphs: " << most_graphs);
      expect_same_rows(decode(overlapped, config), expected);
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
