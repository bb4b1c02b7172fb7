#include "tools/paging.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>
#include <utility>

#include "prefetch/modelled_reader.h"
#include "storage/block_reader.h"
#include "tools/notice.h"
#include "tools/progress_bar.h"

namespace stoker::tools {
namespace {

Result<std::unique_ptr<storage::BlockReader>> open_files(const storage::ModelSource& source,
                                                         const ModelFlags& flags) {
  storage::ReaderOptions options;
  if (flags.io != "auto") {
    options.io = flags.io == "uring" ? storage::IoChoice::kUring : storage::IoChoice::kPread;
  }
  if (flags.direct != "auto") {
    options.direct =
        flags.direct == "on" ? storage::DirectChoice::kOn : storage::DirectChoice::kOff;
  }
  return storage::open_reader(source, options);
}

// A source whose blocks need no checking: what a modelled drive delivers is whatever lies in the
// slot.
class UnreadExperts final : public ExpertSource {
 public:
  explicit UnreadExperts(const ExpertSource& source) : source_(source) {}
  int num_blocks(int layer) const override { return source_.num_blocks(layer); }
  std::int64_t expert_bytes(int layer) const override { return source_.expert_bytes(layer); }
  std::int64_t block_offset(int layer, int block) const override {
    return source_.block_offset(layer, block);
  }
  std::int64_t block_bytes(int layer, int block) const override {
    return source_.block_bytes(layer, block);
  }
  ExpertPart part(int layer, int block, const std::byte* bytes, DeviceId device) const override {
    return source_.part(layer, block, bytes, device);
  }
  Status land(ExpertId, int, int, std::byte*) const override { return {}; }
  Status read(ExpertId id, std::byte* dst) const override { return source_.read(id, dst); }

 private:
  const ExpertSource& source_;
};

// Every slot gets the bytes of some expert, so that what is computed with is never zeros.
Status fill_with_experts(const storage::HostSlotArena& arena, const ExpertSource& source,
                         std::span<const ExpertLayer> layers) {
  ProgressBar progress("reading experts", ProgressBar::Unit::kBytes);
  while (arena.num_usable() < arena.num_slots()) {
    RETURN_IF_ERROR(arena.status());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (int slot = 0; slot < arena.num_slots(); ++slot) {
    const ExpertLayer& layer = layers[static_cast<std::size_t>(slot) % layers.size()];
    const int expert = slot / static_cast<int>(layers.size()) % layer.num_experts;
    RETURN_IF_ERROR(source.read(ExpertId{layer.layer, expert}, arena.slot(slot)));
    progress.update((slot + 1) * arena.slot_bytes(), arena.num_slots() * arena.slot_bytes());
  }
  return {};
}

std::unique_ptr<ExpertReader> modelled_reader(const ExpertSource& source, const Clock& clock,
                                              std::int64_t bytes_per_second) {
  ModelledReaderOptions options;
  options.drives = {{.bytes_per_second = static_cast<double>(bytes_per_second)}};
  options.sleep = [](std::chrono::microseconds time) { std::this_thread::sleep_for(time); };
  return std::make_unique<ModelledReader>(source, clock, std::move(options));
}

// Keeps what pins memory; what cannot be pinned is said once and used as it is.
class Pinner {
 public:
  Pinner(PinFn pin, std::shared_ptr<std::vector<std::shared_ptr<void>>> pins)
      : pin_(std::move(pin)), pins_(std::move(pins)) {}

  void operator()(std::span<std::byte> memory) {
    if (!pin_) return;
    Result<std::shared_ptr<void>> pinned = pin_(memory);
    if (pinned.ok()) return pins_->push_back(std::move(pinned).value());
    say_notice(fmt::format("experts go to the GPU more slowly, their memory cannot be pinned: {}",
                           pinned.error().message()));
    pin_ = nullptr;
  }

 private:
  PinFn pin_;
  std::shared_ptr<std::vector<std::shared_ptr<void>>> pins_;
};

}  // namespace

Paging::~Paging() {
  if (arena_ != nullptr) arena_->stop();  // it registers its memory with the reader
}

Result<std::unique_ptr<ExpertManager>> Paging::start(const ModelConfig& config,
                                                     const storage::ModelSource& source,
                                                     const Clock& clock, const ModelFlags& flags,
                                                     const PagingNeed& need) {
  const std::vector<ExpertLayer> layers = expert_layers(config);
  ASSIGN_OR_RETURN(arena_,
                   storage::HostSlotArena::create({.budget_bytes = need.num_slots * need.slot_bytes,
                                                   .slot_bytes = need.slot_bytes}));
  pins_ = std::make_shared<std::vector<std::shared_ptr<void>>>();
  Pinner pinner(need.pin, pins_);
  source_ = &source;
  if (need.modelled_drive_bytes_per_second > 0) {
    unread_experts_ = std::make_unique<UnreadExperts>(source);
    source_ = unread_experts_.get();
    reader_ = modelled_reader(*source_, clock, need.modelled_drive_bytes_per_second);
    arena_->start(std::move(pinner));
    RETURN_IF_ERROR(fill_with_experts(*arena_, source, layers));
  } else {
    ASSIGN_OR_RETURN(std::unique_ptr<storage::BlockReader> reader, open_files(source, flags));
    for (const std::string& notice : reader->notices()) say_notice(notice);
    arena_->start([files = reader.get(), pinner](std::span<std::byte> memory) mutable {
      pinner(memory);
      if (files->register_memory(memory).ok()) return;
      for (const std::string& notice : files->notices()) say_notice(notice);
    });
    reader_ = std::move(reader);
  }
  ExpertManagerOptions options;
  options.prefetch.enabled = flags.prefetch == "on";
  return ExpertManager::create(layers, *source_, *reader_, *arena_, clock, options);
}

Result<std::unique_ptr<ExpertReader>> open_second_reader(const storage::ModelSource& source,
                                                         const ModelFlags& flags) {
  ASSIGN_OR_RETURN(std::unique_ptr<storage::BlockReader> reader, open_files(source, flags));
  return std::unique_ptr<ExpertReader>(std::move(reader));
}

}  // namespace stoker::tools
