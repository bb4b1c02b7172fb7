// An engine over the CUDA backend that decodes, for tests that compare ways of launching the same.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/cuda_test.h"
#include "tests/support/tiny_engine.h"

namespace stoker {

using Rows = std::vector<std::vector<float>>;  // of logits

// An engine, its backend, and sequences that tests decode.
struct DecodeRun {
  DecodeRun(std::unique_ptr<Backend> made, const std::string& config,
            const ExpertManagerOptions& manager = {})
      : backend(made.get()) {
    test::TinyPaging paging;
    paging.num_slots = 24;
    paging.manager = manager;
    paging.manager.site = backend->device();
    engine = std::make_unique<test::TinyEngine>(config, std::move(made), test::kTinyRunner, nullptr,
                                                paging);
  }

  Runner& runner() { return engine->runner(); }
  int num_graphs() const { return cuda_graphs_held(*backend); }
  TokenId token(int i) const { return (5 * i + 3) % engine->config().vocab_size; }

  void start(std::initializer_list<int> prompt_lengths) {
    for (const int length : prompt_lengths) {
      sequences.push_back(engine->sequence());
      const auto prompt = test::random_tokens(length, engine->config().vocab_size, 60);
      for (std::size_t at = 0; at < prompt.size();) {
        const std::size_t count = std::min<std::size_t>(prompt.size() - at, 100);
        engine->feed(sequences.back(), std::span(prompt).subspan(at, count), Purpose::kPrefill,
                     Logits::kNone);
        at += count;
      }
    }
  }
  // One row of each of some sequences.
  Result<Rows> try_step(std::initializer_list<int> which, int i, StepHooks* hooks = nullptr) {
    std::vector<Segment> segments;
    std::vector<TokenId> tokens;
    for (const int s : which) {
      segments.push_back({&sequences[static_cast<std::size_t>(s)], static_cast<int>(tokens.size()),
                          1, Purpose::kDecode, Logits::kLast});
      tokens.push_back(token(i + s));
    }
    ASSIGN_OR_RETURN(const ForwardPtr forward, runner().run({tokens, segments, hooks}));
    return test::TinyEngine::rows_of(*forward);
  }
  void step(Rows& to, std::initializer_list<int> which, int i, StepHooks* hooks = nullptr) {
    Result<Rows> rows = try_step(which, i, hooks);
    ASSERT_TRUE(rows.ok()) << rows.error().message();
    to.insert(to.end(), rows->begin(), rows->end());
  }

  const Backend* backend = nullptr;
  std::unique_ptr<test::TinyEngine> engine;
  std::vector<KvSequence> sequences;
};

inline void expect_same_rows(const Rows& got, const Rows& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], expected[i]) << "row " << i;
}

}  // namespace stoker
