#include "tests/support/memory_model.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <string>

#include "quant/fp8.h"

namespace stoker::test {
namespace {

std::uint64_t hash_name(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  for (const std::string_view ending : endings) {
    if (name.ends_with(ending)) return true;
  }
  return false;
}

struct Storage {
  std::vector<std::byte> payload;
  std::vector<float> scales;
};

void store(QuantFormat format, float value, std::byte* at) {
  switch (format) {
    case QuantFormat::kF32:
      std::memcpy(at, &value, 4);
      return;
    case QuantFormat::kBf16: {
      const bf16 rounded = to_bf16(value);
      std::memcpy(at, &rounded, 2);
      return;
    }
    case QuantFormat::kF8E4m3B128:
      *at = static_cast<std::byte>(quant::f32_to_fp8(value));
      return;
    case QuantFormat::kF16:
    case QuantFormat::kInt8:
    case QuantFormat::kInt4:
      CHECK(false, "{} is not made here", quant_format_name(format));
  }
}

}  // namespace

float RandomFloats::next() {
  state_ += 0x9e3779b97f4a7c15ull;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<float>(static_cast<std::int32_t>(z >> 40) - (1 << 23)) * 0x1p-23f;
}

Result<HostWeight> MemoryWeights::read(std::string_view name, std::int64_t rows,
                                       std::int64_t cols) const {
  const bool vector = rows == 1;
  const bool plain = ends_with_any(
      name, {"embed_tokens.weight", "lm_head.weight", "gate.weight", "weights_proj.weight"});
  const QuantFormat format = vector  ? QuantFormat::kF32
                             : plain ? QuantFormat::kBf16
                                     : config_.stored_format;
  auto storage = std::make_shared<Storage>();
  const std::int64_t element = QuantSpec{format, 128}.element_bits() / 8;
  storage->payload.resize(static_cast<std::size_t>(rows * cols * element));
  RandomFloats random(hash_name(name));
  const float spread = std::sqrt(3.0f / static_cast<float>(cols));
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    float value = random.next();
    if (vector) {
      value = ends_with_any(name, {"bias"}) ? 0.2f * value : 1.0f + 0.2f * value;
    } else if (format == QuantFormat::kF8E4m3B128) {
      value *= 448.0f;
    } else {
      value *= name.ends_with("embed_tokens.weight") ? 1.0f : spread;
    }
    store(format, value, storage->payload.data() + i * element);
  }
  HostWeight weight;
  weight.view.payload = storage->payload.data();
  weight.view.rows = rows;
  weight.view.cols = cols;
  weight.view.spec.format = format;
  if (format == QuantFormat::kF8E4m3B128) {
    storage->scales.resize(static_cast<std::size_t>((rows + 127) / 128 * ((cols + 127) / 128)));
    for (float& scale : storage->scales) scale = spread / 448.0f * (1.0f + 0.5f * random.next());
    weight.view.scales = reinterpret_cast<const std::byte*>(storage->scales.data());
  }
  weight.owner = std::move(storage);
  return weight;
}

MemoryExperts::MemoryExperts(const ModelConfig& config)
    : config_(config),
      weights_(config),
      blocks_(config.hidden_size, config.moe_intermediate_size,
              QuantSpec{config.stored_format, 128}) {}

Status MemoryExperts::read(ExpertId id, std::byte* dst) const {
  const std::string prefix = fmt::format("model.layers.{}.mlp.experts.{}.", id.layer, id.expert);
  const std::int64_t hidden = config_.hidden_size, inter = config_.moe_intermediate_size;
  ASSIGN_OR_RETURN(const HostWeight gate,
                   weights_.read(prefix + "gate_proj.weight", inter, hidden));
  ASSIGN_OR_RETURN(const HostWeight up, weights_.read(prefix + "up_proj.weight", inter, hidden));
  ASSIGN_OR_RETURN(const HostWeight down,
                   weights_.read(prefix + "down_proj.weight", hidden, inter));
  for (int block = 0; block < blocks_.num_blocks(); ++block) {
    blocks_.write(block, gate.view, up.view, down.view, dst + blocks_.block(block).offset);
  }
  return {};
}

}  // namespace stoker::test
