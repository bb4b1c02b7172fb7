// A model whose experts are paged gives the bits it gives when they are all resident, however few
// slots there are, in whatever order blocks come, and whatever is fetched ahead.
#include <gtest/gtest.h>

#include "cpu/factory.h"
#include "cpu/reference_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/thread_sanitizer.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::TinyEngine;
using test::TinyPaging;
using Rows = std::vector<std::vector<float>>;

constexpr int kPrompt = 24, kDecoded = 12;

// Logits of a prompt, then of tokens one by one.
Rows run(TinyEngine& engine) {
  const auto tokens = test::random_tokens(kPrompt + kDecoded, engine.config().vocab_size, 11);
  KvSequence kv = engine.sequence();
  Rows rows = engine.feed(kv, std::span(tokens).first(kPrompt), Purpose::kPrefill, Logits::kAll);
  for (int i = kPrompt; i < kPrompt + kDecoded; ++i) {
    const auto row = engine.feed(kv, std::span(tokens).subspan(static_cast<std::size_t>(i), 1),
                                 Purpose::kDecode, Logits::kLast);
    rows.push_back(row.front());
  }
  return rows;
}

std::unique_ptr<Backend> reference() { return std::make_unique<ReferenceBackend>(); }

// Slots, and whether experts are fetched ahead.
class PagedForward : public testing::TestWithParam<std::tuple<int, bool>> {
 protected:
  static TinyPaging paging(bool shuffled) {
    TinyPaging paging;
    paging.num_slots = std::get<0>(GetParam());
    paging.manager.prefetch.enabled = std::get<1>(GetParam());
    paging.manager.prefetch.adaptive = false;
    paging.reader.depth = 7;
    paging.reader.shuffled = shuffled;
    paging.reader.max_per_reap = 1;  // they drip in
    return paging;
  }
};

TEST_P(PagedForward, GivesTheBitsOfAResidentModel) {
  SKIP_UNDER_THREAD_SANITIZER();
  const std::string config = test::tiny_config();
  TinyEngine resident(config, reference());
  const Rows expected = run(resident);
  for (const bool shuffled : {false, true}) {
    TinyEngine paged(config, reference(), test::kTinyRunner, nullptr, paging(shuffled));
    EXPECT_EQ(run(paged), expected) << "shuffled " << shuffled;
    LayerCounters total;
    for (const LayerSpec& layer : paged.config().layers())
      total += paged.experts().counters(layer.index);
    EXPECT_GT(total.miss, 0);
  }
}

TEST_P(PagedForward, GivesTheSameBitsOnTwoThreads) {
  const std::string config = test::tiny_config();
  Team team(2);
  CpuBackendOptions options;
  options.isa = best_isa();
  options.team = &team;
  TinyEngine resident(config, make_cpu_backend(options).value());
  const Rows expected = run(resident);
  TinyEngine paged(config, make_cpu_backend(options).value(), test::kTinyRunner, nullptr,
                   paging(true));
  EXPECT_EQ(run(paged), expected);
}

// 4 experts per token, 36 in all.
INSTANTIATE_TEST_SUITE_P(Slots, PagedForward,
                         testing::Combine(testing::Values(4, 5, 8, 13, 24, 36), testing::Bool()));

}  // namespace
}  // namespace stoker
