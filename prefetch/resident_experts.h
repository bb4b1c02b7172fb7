// ResidentExperts: the ExpertProvider of a model that fits: every routed expert lies in RAM, every
// demand is runnable at once.
#pragma once

#include <memory>
#include <vector>

#include "core/base/progress.h"
#include "core/interface/expert_provider.h"
#include "core/interface/expert_source.h"
#include "core/model/model_config.h"

namespace stoker {

class ResidentExperts final : public ExpertProvider {
 public:
  // Reads all experts of the main layers. `progress` counts bytes. Refused with the numbers when
  // `max_bytes` (0: no limit) is not enough.
  static Result<std::unique_ptr<ResidentExperts>> load(const ModelConfig& config,
                                                       const ExpertSource& source,
                                                       std::int64_t max_bytes,
                                                       const ProgressFn& progress);

  Result<ExpertSetPtr> demand(int layer, std::span<const ExpertUse> uses) override;
  void hint(const LookAhead& /*guesses*/) override {}
  void wait(std::chrono::microseconds /*timeout*/) override {}

  std::int64_t bytes() const { return total_bytes_; }

 private:
  // Yields the parts of one demand in order: all gate/up parts, then all down parts.
  class Set final : public ExpertSet {
   public:
    explicit Set(ResidentExperts& owner) : owner_(owner) {}
    void open(int layer, std::span<const ExpertUse> uses);
    std::size_t take_ready(std::span<ExpertPart> out) override;
    bool exhausted() const override { return next_block_ == num_blocks_; }
    Status status() const override { return {}; }
    bool lent() const { return lent_; }

   private:
    void release() override { lent_ = false; }

    ResidentExperts& owner_;
    int layer_ = 0;
    std::span<const ExpertUse> uses_;
    int num_blocks_ = 0, next_block_ = 0;
    std::size_t next_use_ = 0;
    bool lent_ = false;
  };

  struct FreeBytes {
    void operator()(std::byte* bytes) const;
  };
  struct Layer {
    std::unique_ptr<std::byte, FreeBytes> bytes;  // experts one after another
    std::int64_t expert_bytes = 0;
    std::vector<ExpertPart> parts;  // [num_experts * num_blocks]
    int num_blocks = 0;
  };

  std::vector<Layer> layers_;  // by layer index; empty for dense layers
  std::vector<std::unique_ptr<Set>> sets_;
  std::int64_t total_bytes_ = 0;
};

}  // namespace stoker
