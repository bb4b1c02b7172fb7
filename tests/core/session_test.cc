#include "core/runtime/session.h"

#include <gtest/gtest.h>

#include "cpu/reference_backend.h"
#include "tests/support/late_backend.h"
#include "tests/support/published_configs.h"
#include "tests/support/tiny_engine.h"

namespace stoker {
namespace {

using test::random_tokens;
using test::TinyEngine;

SamplerOptions greedy() { return {.temperature = 0.0f}; }

std::vector<TokenId> generate(Session& session, int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(session.next().value());
  return tokens;
}

class SessionTest : public testing::Test {
 protected:
  SessionTest() : engine_(test::tiny_config(), std::make_unique<ReferenceBackend>()) {}

  std::vector<TokenId> tokens(int count, std::uint64_t seed) const {
    return random_tokens(count, engine_.config().vocab_size, seed);
  }

  TinyEngine engine_;
};

TEST_F(SessionTest, ThePromptsChunksDoNotChangeTheAnswer) {
  const std::vector<TokenId> prompt = tokens(300, 1);  // three steps of at most 128 rows
  Session session(engine_.runner(), greedy());
  session.submit(prompt);
  const std::vector<TokenId> answer = generate(session, 5);
  RunnerOptions small = test::kTinyRunner;
  small.prefill_rows = 50;
  TinyEngine other(test::tiny_config(), std::make_unique<ReferenceBackend>(), small);
  Session chunked(other.runner(), greedy());
  chunked.submit(prompt);
  EXPECT_EQ(generate(chunked, 5), answer);
  EXPECT_EQ(session.num_cached(), 304);
  EXPECT_EQ(session.tokens().size(), 305u);
}

TEST_F(SessionTest, TwoSessionsInABatchAnswerAsTheyDoAlone) {
  std::vector<std::vector<TokenId>> alone;
  for (const std::uint64_t seed : {2, 3}) {
    Session session(engine_.runner(), greedy());
    session.submit(tokens(static_cast<int>(20 * seed), seed));
    alone.push_back(generate(session, 6));
  }
  Session a(engine_.runner(), greedy()), b(engine_.runner(), greedy());
  a.submit(tokens(40, 2));
  Session* both[] = {&a, &b};
  ASSERT_TRUE(engine_.runner().step(both).ok());  // b has nothing to feed yet
  b.submit(tokens(60, 3));
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(engine_.runner().step(both).ok());
  const auto answer = [](const Session& session, std::size_t prompt) {
    return std::vector<TokenId>(session.tokens().begin() + static_cast<std::ptrdiff_t>(prompt),
                                session.tokens().begin() + static_cast<std::ptrdiff_t>(prompt) + 6);
  };
  EXPECT_EQ(answer(a, 40), alone[0]);
  EXPECT_EQ(answer(b, 60), alone[1]);
}

TEST_F(SessionTest, ACommonPrefixStaysCached) {
  const std::vector<TokenId> prompt = tokens(100, 4);
  Session session(engine_.runner(), greedy());
  session.submit(prompt);
  generate(session, 3);
  std::vector<TokenId> edited(prompt.begin(), prompt.begin() + 80);
  const std::vector<TokenId> tail = tokens(10, 5);
  edited.insert(edited.end(), tail.begin(), tail.end());
  session.submit(edited);
  EXPECT_EQ(session.num_cached(), 80);
  const std::vector<TokenId> answer = generate(session, 4);
  Session fresh(engine_.runner(), greedy());
  fresh.submit(edited);
  EXPECT_EQ(generate(fresh, 4), answer);
  // The same prompt again: its last token is fed once more.
  session.submit(edited);
  EXPECT_EQ(session.num_cached(), 89);
  EXPECT_EQ(generate(session, 4), answer);
}

TEST_F(SessionTest, AFailedStepCanBeTriedAgain) {
  auto late = std::make_unique<test::LateBackend>(std::make_unique<ReferenceBackend>(), 10);
  test::LateBackend& backend = *late;
  TinyEngine engine(test::tiny_config(), std::move(late));
  const std::vector<TokenId> prompt = tokens(30, 6);
  Session expected(engine.runner(), greedy());
  expected.submit(prompt);
  const std::vector<TokenId> answer = generate(expected, 4);
  Session session(engine.runner(), greedy());
  session.submit(prompt);
  ASSERT_EQ(session.next().value(), answer[0]);
  backend.fail_at(20);
  ASSERT_FALSE(session.next().ok());
  EXPECT_EQ(session.tokens().size(), 31u);
  EXPECT_EQ(session.num_cached(), 30);
  backend.fail_at(-1);
  EXPECT_EQ(session.next().value(), answer[1]);
}

TEST_F(SessionTest, SamplingDependsOnTheSeedAlone) {
  const std::vector<TokenId> prompt = tokens(20, 7);
  SamplerOptions options;
  options.seed = 9;
  Session a(engine_.runner(), options), b(engine_.runner(), options);
  a.submit(prompt);
  b.submit(prompt);
  EXPECT_EQ(generate(a, 10), generate(b, 10));
}

}  // namespace
}  // namespace stoker
