// The paging half of a model with experts: memory in RAM, a reader of its files, and the manager
// that joins them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/interface/expert_source.h"
#include "core/model/model_config.h"
#include "prefetch/expert_manager.h"
#include "storage/model_source.h"
#include "storage/slot_arena.h"
#include "tools/model_flags.h"

namespace stoker::tools {

// Lets GPUs copy from `memory` until the last owner of what is returned is gone.
using PinFn = std::function<Result<std::shared_ptr<void>>(std::span<std::byte> memory)>;

struct PagingNeed {
  int num_slots = 0;
  std::int64_t slot_bytes = 0;
  PinFn pin;  // empty: nobody copies from the slots
  // For benchmarks: experts come, at no cost of CPU, from a drive of this speed that delivers bytes
  // of other experts. 0: from the model's files.
  std::int64_t modelled_drive_bytes_per_second = 0;
};

// Members stand in the order they are built, and go the other way. `source` and the clock outlive
// it; the manager does not.
class Paging {
 public:
  Paging() = default;
  Paging(Paging&&) noexcept = default;
  Paging& operator=(Paging&&) noexcept = default;  // of an empty one
  ~Paging();

  // Makes the threads of I/O and of the memory: call it before the calling thread is pinned.
  Result<std::unique_ptr<ExpertManager>> start(const ModelConfig& config,
                                               const storage::ModelSource& source,
                                               const Clock& clock, const ModelFlags& flags,
                                               const PagingNeed& need);

  // Null and 0 before start().
  const storage::HostSlotArena* arena() const { return arena_.get(); }
  const ExpertReader* reader() const { return reader_.get(); }
  // What experts are taken from: the given source, or a stand-in of a modelled drive.
  const ExpertSource& source() const { return *source_; }

 private:
  std::unique_ptr<storage::HostSlotArena> arena_;
  std::shared_ptr<std::vector<std::shared_ptr<void>>> pins_;  // of the arena's memory
  std::unique_ptr<ExpertSource> unread_experts_;              // with a modelled drive only
  const ExpertSource* source_ = nullptr;
  std::unique_ptr<ExpertReader> reader_;
};

// Another reader of a model's expert files, with the same settings.
Result<std::unique_ptr<ExpertReader>> open_second_reader(const storage::ModelSource& source,
                                                         const ModelFlags& flags);

}  // namespace stoker::tools
