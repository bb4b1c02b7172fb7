// Several backends on one GPU or on two: what travels between them, and in what order.
#include <gtest/gtest.h>

#include "core/runtime/transfer.h"
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

// The parameter: where the second backend stands.
class CudaDevices : public testing::TestWithParam<int> {
 protected:
  static constexpr int kRows = 37, kCols = 300;

  void SetUp() override {
    const std::size_t num_gpus = list_gpus().size();
    if (num_gpus == 0) GTEST_SKIP() << "no CUDA device: " << cuda_support();
    if (GetParam() >= static_cast<int>(num_gpus)) GTEST_SKIP() << "a single GPU";
    const int gpus[] = {0, GetParam()};
    const Status peers = enable_peer_access(gpus);
    ASSERT_TRUE(peers.ok()) << peers.error().message();
    a_ = make(0, 0);
    b_ = make(GetParam(), 1);
  }

  static std::unique_ptr<Backend> make(int gpu, int logical) {
    CudaBackendOptions options;
    options.device = gpu;
    options.logical = logical;
    options.activations = DType::kF32;
    options.kv_format = KvFormat::kF32;
    auto made = make_cuda_backend(options);
    CHECK(made.ok(), "{}", made.error().message());
    return std::move(made).value();
  }
  static Tensor empty(Backend& backend, std::int64_t rows, std::int64_t cols) {
    auto tensor = backend.allocate(DType::kF32, rows, cols);
    CHECK(tensor.ok(), "{}", tensor.error().message());
    return std::move(tensor).value();
  }
  static Values download(Backend& backend, const TensorView& view) {
    Values values(view.rows, view.cols);
    backend.copy_out(values.data.data(), view);
    const Status status = backend.finish();
    EXPECT_TRUE(status.ok()) << status.error().message();
    return values;
  }

  std::unique_ptr<Backend> a_, b_;
};

TEST_P(CudaDevices, AreTold) {
  EXPECT_EQ(a_->device(), DeviceId{1});
  EXPECT_EQ(b_->device(), DeviceId{2});
  EXPECT_EQ(empty(*b_, 2, 2).view().device, DeviceId{2});
}

TEST_P(CudaDevices, RowsTravelWithTheirColumns) {
  Random random(40);
  const Values x = random.values(kRows, kCols);
  const Tensor from = empty(*a_, kRows, kCols), to = empty(*b_, kRows, kCols);
  const Tensor slice = empty(*b_, kRows, 100), wide = empty(*b_, kRows, 2 * kCols);
  a_->copy_in(from.view(), x.data.data());
  transfer(*a_, from.view(), *b_, to.view());
  transfer(*a_, from.view().col_slice(50, 100), *b_, slice.view());
  transfer(*a_, from.view(), *b_, wide.view().col_slice(7, kCols));
  EXPECT_EQ(download(*b_, to.view()).data, x.data);
  const Values got = download(*b_, slice.view()), got_wide = download(*b_, wide.view());
  for (int t = 0; t < kRows; ++t) {
    for (int c = 0; c < 100; ++c) ASSERT_EQ(got.at(t, c), x.at(t, 50 + c)) << t << ", " << c;
    for (int c = 0; c < 2 * kCols; ++c) {
      const bool inside = c >= 7 && c < 7 + kCols;
      ASSERT_EQ(got_wide.at(t, c), inside ? x.at(t, c - 7) : 0.0f) << t << ", " << c;
    }
  }
}

// To and fro, a little computed on either side, and no wait of the host in between.
TEST_P(CudaDevices, WaitForEachOther) {
  constexpr int kRounds = 200, kWide = 1 << 14;
  const TestStep step({{kRows, kRows}});
  ASSERT_TRUE(a_->begin_step(step.view).ok());
  ASSERT_TRUE(b_->begin_step(step.view).ok());
  Random random(41);
  const Values x = random.values(kRows, kWide);
  const Tensor on_a = empty(*a_, kRows, kWide), on_b = empty(*b_, kRows, kWide);
  a_->copy_in(on_a.view(), x.data.data());
  for (int round = 0; round < kRounds; ++round) {
    a_->scale(step.view, on_a.view(), 2.0f);
    transfer(*a_, on_a.view(), *b_, on_b.view());
    b_->scale(step.view, on_b.view(), -0.5f);
    transfer(*b_, on_b.view(), *a_, on_a.view());
  }
  EXPECT_EQ(download(*a_, on_a.view()).data, x.data);
}

// An event that has long come, and one that others came after.
TEST_P(CudaDevices, WaitForAnOldEvent) {
  const Tensor on_a = empty(*a_, kRows, kCols), on_b = empty(*b_, kRows, kCols);
  Random random(42);
  const Values x = random.values(kRows, kCols);
  a_->copy_in(on_a.view(), x.data.data());
  const Event event = a_->record();
  for (int i = 0; i < 600; ++i) (void)a_->record();
  b_->wait_for(*a_, event);
  b_->copy(on_b.view(), on_a.view());
  EXPECT_EQ(download(*b_, on_b.view()).data, x.data);
  ASSERT_TRUE(a_->finish().ok());
  b_->wait_for(*a_, event);
  b_->wait_for(*b_, b_->record());
  EXPECT_TRUE(b_->finish().ok());
}

// A tiny model whose layers stand on both says what it says on one.
TEST_P(CudaDevices, LayersOnBothChangeNoBit) {
  if (GetParam() != 0 && list_gpus()[0].name != list_gpus()[1].name) {
    GTEST_SKIP() << "the GPUs differ, and with them last bits";
  }
  const auto run = [](EngineBackends backends) {
    TinyPaging paging;
    paging.manager.site = backends.backends.back()->device();
    TinyEngine engine(tiny_config(), std::move(backends), test::kTinyRunner, nullptr, paging);
    const auto tokens = random_tokens(40, engine.config().vocab_size, 43);
    KvSequence kv = engine.sequence();
    Rows rows = engine.feed(kv, std::span(tokens).first(30), Purpose::kPrefill, Logits::kAll);
    for (std::size_t i = 30; i < tokens.size(); ++i) {
      const auto token = std::span(tokens).subspan(i, 1);
      rows.push_back(engine.feed(kv, token, Purpose::kDecode, Logits::kLast).front());
    }
    return rows;
  };
  EngineBackends both;
  both.backends.push_back(std::move(a_));
  both.backends.push_back(std::move(b_));
  both.dense = {0, 0, 1, 1};
  EXPECT_EQ(run(std::move(both)), run(EngineBackends(make(0, 0))));
}

INSTANTIATE_TEST_SUITE_P(Gpus, CudaDevices, testing::Values(0, 1), [](const auto& info) {
  return std::string(info.param == 0 ? "one" : "two");
});

TEST(CudaDevicesAccess, IsEnabledAsOftenAsWanted) {
  std::vector<int> gpus;
  for (std::size_t i = 0; i < list_gpus().size(); ++i) gpus.push_back(static_cast<int>(i));
  if (gpus.empty()) GTEST_SKIP() << "no CUDA device: " << cuda_support();
  for (int i = 0; i < 2; ++i) {
    const Status status = enable_peer_access(gpus);
    EXPECT_TRUE(status.ok()) << status.error().message();
  }
  gpus.push_back(99);
  EXPECT_FALSE(enable_peer_access(gpus).ok());
}

}  // namespace
}  // namespace stoker
