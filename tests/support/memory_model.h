// A random model in memory: every tensor that is asked for exists, its values a function of its
// name. For tests of the forward pass that need no files.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "core/interface/expert_source.h"
#include "core/interface/weight_source.h"
#include "core/model/model_config.h"
#include "quant/expert_block.h"

namespace stoker::test {

// Values that are never all zero, never NaN; the same on every machine. Linears come in the
// config's stored format, router, embedding, head and weights_proj in BF16, vectors in F32.
class MemoryWeights final : public WeightSource {
 public:
  explicit MemoryWeights(const ModelConfig& config) : config_(config) {}
  bool has(std::string_view /*name*/) const override { return true; }
  Result<HostWeight> read(std::string_view name, std::int64_t rows,
                          std::int64_t cols) const override;
  std::int64_t dense_bytes() const override { return 1; }
  std::vector<std::string> names() const override { return {}; }

 private:
  const ModelConfig& config_;
};

class MemoryExperts : public ExpertSource {
 public:
  explicit MemoryExperts(const ModelConfig& config);
  int num_blocks(int /*layer*/) const override { return blocks_.num_blocks(); }
  std::int64_t expert_bytes(int /*layer*/) const override { return blocks_.expert_bytes(); }
  std::int64_t block_offset(int /*layer*/, int block) const override {
    return blocks_.block(block).offset;
  }
  std::int64_t block_bytes(int /*layer*/, int block) const override {
    return blocks_.block(block).bytes;
  }
  ExpertPart part(int /*layer*/, int block, const std::byte* bytes,
                  DeviceId device) const override {
    return blocks_.part(block, bytes, device);
  }
  Status land(ExpertId /*id*/, int /*block*/, int /*replica*/,
              std::byte* /*bytes*/) const override {
    return {};
  }
  Status read(ExpertId id, std::byte* dst) const override;

 private:
  const ModelConfig& config_;
  MemoryWeights weights_;
  quant::ExpertBlocks blocks_;
};

// A seeded stream of floats in [-1, 1), the same on every machine.
class RandomFloats {
 public:
  explicit RandomFloats(std::uint64_t seed) : state_(seed) {}
  float next();

 private:
  std::uint64_t state_;
};

}  // namespace stoker::test
