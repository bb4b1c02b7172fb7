// Whatever parses as a config must be usable: every number that follows from it can be computed.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/model/model_config.h"
#include "core/model/tensor_table.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stoker;
  const Result<ModelConfig> config =
      ModelConfig::parse({reinterpret_cast<const char*>(data), size});
  if (!config.ok()) {
    CHECK(!config.error().message().empty());
    return 0;
  }
  CHECK(config->layers().size() ==
        static_cast<std::size_t>(config->num_hidden_layers + config->num_nextn_predict_layers));
  for (const float frequency : config->rope_inv_freq()) {
    CHECK(std::isfinite(frequency) && frequency >= 0.0f, "{}", frequency);
  }
  CHECK(std::isfinite(config->softmax_scale()), "{}", config->softmax_scale());
  CHECK(config->kv_bytes_per_token(KvFormat::kF32, LayerRole::kDraft) > 0);
  CHECK(config->expert_bytes() > 0);
  // A table of a million names is correct, and too slow to build for every input.
  if (config->layers().size() * config->n_routed_experts < 1000) {
    std::int64_t total = 0;
    for (const TensorSpec& tensor : tensor_table(*config)) total += tensor.stored_bytes();
    CHECK(total > 0 && config->dense_bytes() > 0 && config->active_bytes() > 0);
  }
  return 0;
}
