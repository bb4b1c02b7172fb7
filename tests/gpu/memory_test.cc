// What CUDA takes of memory: scratch that is reserved and does not grow, pinned memory of others,
// the embedding in RAM.
#include <gtest/gtest.h>

#include "tests/gpu/cuda_test.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::AlignedMemory;
using test::kTinyRunner;
using test::TinyEngine;
using test::TinyPaging;

std::int64_t free_bytes() { return open_gpu(0).value(); }

class CudaMemory : public CudaTest {
 protected:
  static std::string config() { return test::tiny_config_for_tensor_cores(); }
  static CudaScratch needed(const CudaBackendOptions& options) {
    const int most_rows = std::max(kTinyRunner.prefill_rows, kTinyRunner.decode_rows);
    return cuda_scratch(ModelConfig::parse(config()).value(),
                        {most_rows, std::max(kTinyRunner.prefill_logit_rows, most_rows)},
                        kTinyRunner.context_tokens, options);
  }
  static TinyEngine engine_on(std::unique_ptr<Backend> backend) {
    TinyPaging paging;
    paging.manager.site = backend->device();
    return {config(), std::move(backend), kTinyRunner, nullptr, paging};
  }
  // A prompt in chunks, and tokens after it.
  static std::vector<std::vector<float>> run(TinyEngine& engine) {
    const auto tokens = test::random_tokens(290, engine.config().vocab_size, 50);
    KvSequence kv = engine.sequence();
    engine.feed(kv, std::span(tokens).first(128), Purpose::kPrefill, Logits::kNone);
    auto rows =
        engine.feed(kv, std::span(tokens).subspan(128, 128), Purpose::kPrefill, Logits::kAll);
    for (std::size_t i = 256; i < tokens.size(); ++i) {
      const auto token = std::span(tokens).subspan(i, 1);
      rows.push_back(engine.feed(kv, token, Purpose::kDecode, Logits::kLast).front());
    }
    return rows;
  }
};

TEST_P(CudaMemory, ReservedScratchIsAllThatPassesTake) {
  CudaBackendOptions options = options_for(GetParam());
  options.most_graphs = 0;  // the driver takes memory for them
  const CudaScratch scratch = needed(options);
  EXPECT_GT(scratch.bytes(), 0);
  // Loads kernels and libraries, and grows its own scratch. It stays, so that nothing goes back.
  TinyEngine grown = engine_on(make_backend(options));
  const auto expected = run(grown);

  options.scratch = scratch;
  auto backend = make_backend(options);
  const Backend& reserved = *backend;
  EXPECT_EQ(cuda_scratch_held(reserved), scratch);
  TinyEngine engine = engine_on(std::move(backend));
  const std::int64_t before = free_bytes();
  EXPECT_EQ(run(engine), expected);
  EXPECT_EQ(cuda_scratch_held(reserved), scratch);
  EXPECT_EQ(free_bytes(), before);
}

TEST_P(CudaMemory, ScratchIsReservedAtCreation) {
  CudaBackendOptions options = options_for(GetParam());
  const CudaScratch small = needed(options);
  options.scratch = small;
  options.scratch.attention = std::int64_t{256} << 20;
  const std::int64_t before = free_bytes();
  const auto other = make_backend(options);
  EXPECT_GE(before - free_bytes(), std::int64_t{256} << 20);
  EXPECT_EQ(cuda_scratch_held(*other), options.scratch);
  EXPECT_EQ(cuda_scratch_held(*backend), CudaScratch{});
}

TEST_P(CudaMemory, TablesOfThreeStepsAreReserved) {
  CudaBackendOptions options = options_for(GetParam());
  options.scratch = needed(options);
  backend = make_backend(options);
  Random random(52);
  const HostMatrix table = random.matrix(QuantFormat::kF32, 96, 8);
  auto weight = backend->adopt_embedding(table.view);
  ASSERT_TRUE(weight.ok()) << weight.error().message();
  const TestStep most({{1024, 100}, {1024, 27}, {512, 1}}, 96), few({{1, 1}}, 96), third({{5, 2}}),
      fourth({{7, 1}});
  for (const TestStep* step : {&most, &few, &most}) {
    begin(*step);
    const Tensor out = empty(DType::kF32, step->num_rows(), 8);
    backend->embed(step->view, **weight, out.view());
    const Values got = download(out.view());
    for (int t = 0; t < step->num_rows(); ++t) {
      const TokenId token = step->tokens[static_cast<std::size_t>(t)];
      EXPECT_EQ(got.at(t, 7), quant::element_at(table.view, token, 7));
    }
    EXPECT_EQ(cuda_scratch_held(*backend), options.scratch);
  }
  begin(third);  // as many as are reserved
  EXPECT_EQ(cuda_scratch_held(*backend), options.scratch);
  begin(fourth);
  EXPECT_GT(cuda_scratch_held(*backend).step_tables, options.scratch.step_tables);
}

// The numbers of the published model, with room for the formulas to change.
TEST_P(CudaMemory, ScratchOfThePublishedModelIsBounded) {
  const CudaBackendOptions options = options_for(GetParam());
  const ModelConfig config = ModelConfig::parse(test::deepseek_v32_config()).value();
  const CudaScratch scratch = cuda_scratch(config, {512, 16}, 163840, options);
  EXPECT_EQ(scratch.index_scores, std::int64_t{64} * 163840 * 4);
  EXPECT_LT(scratch.bytes(), std::int64_t{600} << 20);
  const CudaScratch less = cuda_scratch(config, {16, 16}, 8192, options);
  EXPECT_EQ(less.index_scores, std::int64_t{16} * 8192 * 4);
  EXPECT_LE(less.attention, scratch.attention);
  EXPECT_LT(less.bytes(), scratch.bytes());
}

TEST_P(CudaMemory, TheEmbeddingStaysInHostMemory) {
  constexpr std::int64_t kVocab = 4096, kHidden = 8192;  // 64 MiB
  Random random(51);
  HostMatrix table;
  table.view.spec.format = QuantFormat::kBf16;
  table.view.rows = kVocab;
  table.view.cols = kHidden;
  table.payload.resize(static_cast<std::size_t>(kVocab * kHidden * 2));
  auto* const values = reinterpret_cast<bf16*>(table.payload.data());
  for (std::int64_t i = 0; i < kVocab * kHidden; ++i) {
    values[i] = to_bf16(static_cast<float>(i % 251) - static_cast<float>(i / kHidden % 7));
  }
  table.view.payload = table.payload.data();
  const std::int64_t before = free_bytes();
  auto weight = backend->adopt_embedding(table.view);
  ASSERT_TRUE(weight.ok()) << weight.error().message();
  EXPECT_EQ((*weight)->bytes(), 0);
  EXPECT_LT(before - free_bytes(), std::int64_t{32} << 20);
  const TestStep step({{9, 9}}, /*vocab=*/kVocab);
  begin(step);
  const Tensor out = empty(activation, 9, kHidden);
  backend->embed(step.view, **weight, out.view());
  const Values got = download(out.view());
  for (int t = 0; t < 9; ++t) {
    const std::int64_t token = step.tokens[static_cast<std::size_t>(t)];
    for (std::int64_t c = 0; c < kHidden; ++c) {
      ASSERT_EQ(got.at(t, c), to_f32(values[token * kHidden + c])) << t << ", " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaMemory, testing::ValuesIn(kCacheTypes), types_of_test);

class CudaMemoryPinning : public testing::Test {
 protected:
  void SetUp() override {
    if (list_gpus().empty()) GTEST_SKIP() << "no CUDA device: " << cuda_support();
  }
};

TEST_F(CudaMemoryPinning, EndsWithItsOwner) {
  const AlignedMemory memory(4 << 20);
  for (int i = 0; i < 3; ++i) {
    auto pinned = pin_host_memory(memory.bytes(), 0);
    ASSERT_TRUE(pinned.ok()) << pinned.error().message();
    EXPECT_EQ(pinned->bytes(), 4 << 20);
    EXPECT_EQ(pinned->num_pieces(), 1);
    EXPECT_FALSE(pin_host_memory(memory.bytes(), 0).ok()) << "twice";
    PinnedHostMemory moved = std::move(pinned).value();
    EXPECT_EQ(moved.bytes(), 4 << 20);
    moved = PinnedHostMemory();
    EXPECT_EQ(moved.bytes(), 0);
  }
}

TEST_F(CudaMemoryPinning, TakesWholePagesOnly) {
  const AlignedMemory memory(1 << 20);
  for (const auto span : {memory.bytes().subspan(64), memory.bytes().first(5000)}) {
    const auto pinned = pin_host_memory(span, 0);
    ASSERT_FALSE(pinned.ok());
    EXPECT_EQ(pinned.error().code(), ErrorCode::kInvalidArgument);
  }
  EXPECT_FALSE(pin_host_memory(memory.bytes(), 99).ok());
  const auto nothing = pin_host_memory({}, 0);
  ASSERT_TRUE(nothing.ok()) << nothing.error().message();
  EXPECT_EQ(nothing->bytes(), 0);
}

// More than a piece; and nothing stays registered where a later piece cannot be.
TEST_F(CudaMemoryPinning, GoesInPieces) {
  constexpr std::int64_t kRest = 2 << 20;
  const AlignedMemory memory(kPinnedPieceBytes + kRest);
  {
    const auto rest =
        pin_host_memory(memory.bytes().subspan(static_cast<std::size_t>(kPinnedPieceBytes)), 0);
    ASSERT_TRUE(rest.ok()) << rest.error().message();
    EXPECT_FALSE(pin_host_memory(memory.bytes(), 0).ok());
  }
  const auto all = pin_host_memory(memory.bytes(), 0);
  ASSERT_TRUE(all.ok()) << all.error().message();
  EXPECT_EQ(all->num_pieces(), 2);
  EXPECT_EQ(all->bytes(), kPinnedPieceBytes + kRest);
}

}  // namespace
}  // namespace stoker
