#include "storage/open_model.h"

#include <utility>

#include "storage/checkpoint.h"
#include "storage/pack_journal.h"
#include "storage/store.h"

namespace stoker::storage {

Result<std::unique_ptr<ModelSource>> open_model(
    const std::filesystem::path& dir, const ModelConfig& config,
    std::span<const std::filesystem::path> expert_dirs) {
  if (Store::is_store(dir)) {
    ASSIGN_OR_RETURN(std::unique_ptr<Store> store, Store::open(dir, config, expert_dirs));
    return std::unique_ptr<ModelSource>(std::move(store));
  }
  std::error_code ignored;
  if (std::filesystem::exists(dir / kJournalFile, ignored)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: is an unfinished store; the command that began it finishes it",
                      dir.string());
  }
  if (!expert_dirs.empty()) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "{} is a published checkpoint; only the expert files of a packed model (stoker "
        "pack) can lie in other directories",
        dir.string());
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, Checkpoint::open(dir, config));
  return std::unique_ptr<ModelSource>(std::move(checkpoint));
}

}  // namespace stoker::storage
