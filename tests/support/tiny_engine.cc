#include "tests/support/tiny_engine.h"

#include <algorithm>

namespace stoker::test {

TinyEngine::TinyEngine(const std::string& config, EngineBackends backends, RunnerOptions options,
                       const WrapProvider& wrap, const TinyPaging& paging)
    : config_(ModelConfig::parse(config).value()) {
  const MemoryWeights weights(config_);
  const std::vector<ExpertLayer> layers = expert_layers(config_);
  int num_experts = 0;
  for (const ExpertLayer& layer : layers) num_experts += layer.num_experts;
  source_ = std::make_unique<MemoryExperts>(config_);
  arena_ = std::make_unique<MemoryArena>(paging.num_slots > 0 ? paging.num_slots : num_experts,
                                         source_->expert_bytes(layers.front().layer));
  reader_ = std::make_unique<MemoryReader>(*source_, paging.reader);
  if (paging.prepare_experts) {
    for (const ExpertLayer& layer : layers) {
      for (int expert = 0; expert < layer.num_experts; ++expert)
        reader_->prepare({layer.layer, expert});
    }
  }
  auto manager =
      ExpertManager::create(layers, *source_, *reader_, *arena_, clock_, paging.manager).value();
  manager_ = manager.get();
  std::unique_ptr<ExpertProvider> experts;
  if (paging.tiers) {
    experts = in_tiers(std::move(manager), backends, *paging.tiers);
  } else {
    experts = std::move(manager);
  }
  if (wrap) experts = wrap(std::move(experts));
  std::shared_ptr<const Engine> engine =
      Engine::load(config_, weights, std::move(backends)).value();
  runner_ = Runner::create(std::move(engine), std::move(experts), options).value();
}

std::unique_ptr<ExpertProvider> TinyEngine::in_tiers(std::unique_ptr<ExpertManager> manager,
                                                     const EngineBackends& backends,
                                                     const TinyTiers& wanted) {
  const std::vector<ExpertLayer> layers = expert_layers(config_);
  TierOptions options = wanted.options;
  options.host_computes = false;
  std::vector<std::unique_ptr<DeviceSlots>> slots;
  for (const std::unique_ptr<Backend>& backend : backends.backends) {
    if (backend->device() == kHost) {
      options.host_computes = true;
    } else if (wanted.num_slots > 0) {
      auto device = std::make_unique<MemoryDeviceSlots>(backend->device(), wanted.num_slots,
                                                        source_->expert_bytes(layers.front().layer),
                                                        wanted.polls_per_copy);
      device_slots_.push_back(device.get());
      slots.push_back(std::move(device));
    }
  }
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const int index = backends.dense.empty() ? 0 : backends.dense[layer];
    options.dense_device.push_back(backends.backends[index]->device());
  }
  const auto num_devices = std::ranges::count_if(
      backends.backends, [](const auto& backend) { return backend->device() != kHost; });
  auto tiers = TieredExperts::create(std::move(manager), layers, *source_, std::move(slots),
                                     some_costs(static_cast<int>(num_devices)), std::move(options))
                   .value();
  tiers_ = tiers.get();
  return tiers;
}

std::vector<std::vector<float>> TinyEngine::rows_of(const Forward& forward) {
  const RowsView logits = forward.logits();
  std::vector<std::vector<float>> rows;
  rows.reserve(static_cast<std::size_t>(logits.num_rows));
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
  tokens.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    tokens.push_back(
        static_cast<TokenId>((random.next() + 1.0f) * 0.5f * static_cast<float>(vocab_size)));
  }
  return tokens;
}

}  // namespace stoker::test
