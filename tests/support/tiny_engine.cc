#include "tests/support/tiny_engine.h"

#include "prefetch/resident_experts.h"

namespace stoker::test {

TinyEngine::TinyEngine(const std::string& config, std::unique_ptr<Backend> backend,
                       RunnerOptions options, const WrapProvider& wrap) {
  ModelConfig parsed = ModelConfig::parse(config).value();
  const MemoryWeights weights(parsed);
  const MemoryExperts source(parsed);
  std::unique_ptr<ExpertProvider> experts =
      ResidentExperts::load(parsed, source, 0, nullptr).value();
  if (wrap) experts = wrap(std::move(experts));
  std::shared_ptr<const Engine> engine = Engine::load(parsed, weights, std::move(backend)).value();
  runner_ = Runner::create(std::move(engine), std::move(experts), options).value();
}

std::vector<std::vector<float>> TinyEngine::rows_of(const Forward& forward) {
  const RowsView logits = forward.logits();
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < logits.num_rows; ++i)
    rows.emplace_back(logits.row(i).begin(), logits.row(i).end());
  return rows;
}

std::vector<std::vector<float>> TinyEngine::feed(KvSequence& kv, std::span<const TokenId> tokens,
                                                 Purpose purpose, Logits want) {
  const Segment segment{&kv, 0, static_cast<int>(tokens.size()), purpose, want};
  const ForwardPtr forward = runner_->run({tokens, {&segment, 1}}).value();
  return rows_of(*forward);
}

std::vector<TokenId> random_tokens(int count, int vocab_size, std::uint64_t seed) {
  RandomFloats random(seed);
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(
        static_cast<TokenId>((random.next() + 1.0f) * 0.5f * static_cast<float>(vocab_size)));
  }
  return tokens;
}

}  // namespace stoker::test
