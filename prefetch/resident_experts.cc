#include "prefetch/resident_experts.h"

#include <new>

namespace stoker {
namespace {

constexpr std::align_val_t kPageAlign{4096};
constexpr double kMiB = 1024.0 * 1024.0;

bool has_experts(const LayerSpec& spec) {
  return spec.role == LayerRole::kMain && spec.ffn == FfnKind::kMoe;
}

}  // namespace

void ResidentExperts::FreeBytes::operator()(std::byte* bytes) const {
  ::operator delete(bytes, kPageAlign);
}

Result<std::unique_ptr<ResidentExperts>> ResidentExperts::load(const ModelConfig& config,
                                                               const ExpertSource& source,
                                                               std::int64_t max_bytes,
                                                               const ProgressFn& progress) {
  auto provider = std::make_unique<ResidentExperts>();
  for (const LayerSpec& spec : config.layers()) {
    if (has_experts(spec))
      provider->total_bytes_ += source.expert_bytes(spec.index) * spec.router.num_experts;
  }
  if (max_bytes > 0 && provider->total_bytes_ > max_bytes) {
    return make_error(ErrorCode::kResource,
                      "the routed experts take {:.1f} MiB and --ram allows {:.1f} MiB; this "
                      "version keeps all of them "
                      "in memory: give it more, or use a smaller model",
                      static_cast<double>(provider->total_bytes_) / kMiB,
                      static_cast<double>(max_bytes) / kMiB);
  }
  std::int64_t done = 0;
  for (const LayerSpec& spec : config.layers()) {
    if (!has_experts(spec)) continue;
    provider->layers_.resize(static_cast<std::size_t>(spec.index) + 1);
    Layer& layer = provider->layers_.back();
    layer.expert_bytes = source.expert_bytes(spec.index);
    layer.num_blocks = source.num_blocks(spec.index);
    const std::size_t bytes =
        static_cast<std::size_t>(layer.expert_bytes) * spec.router.num_experts;
    layer.bytes.reset(static_cast<std::byte*>(::operator new(bytes, kPageAlign, std::nothrow)));
    if (layer.bytes == nullptr) {
      return make_error(ErrorCode::kResource, "no memory for the experts of layer {} ({:.1f} MiB)",
                        spec.index, static_cast<double>(bytes) / kMiB);
    }
    for (int expert = 0; expert < spec.router.num_experts; ++expert) {
      std::byte* const at = layer.bytes.get() + expert * layer.expert_bytes;
      RETURN_IF_ERROR(source.read({spec.index, expert}, at), "loading expert {} of layer {}",
                      expert, spec.index);
      for (int block = 0; block < layer.num_blocks; ++block) {
        layer.parts.push_back(
            source.part(spec.index, block, at + source.block_offset(spec.index, block), kHost));
      }
      done += layer.expert_bytes;
      if (progress) progress(done, provider->total_bytes_);
    }
  }
  return provider;
}

Result<ExpertSetPtr> ResidentExperts::demand(int layer, std::span<const ExpertUse> uses) {
  CHECK(layer < static_cast<int>(layers_.size()) && layers_[layer].bytes != nullptr,
        "layer {} has no experts", layer);
  for (const auto& set : sets_) {
    if (set->lent()) continue;
    set->open(layer, uses);
    return ExpertSetPtr(set.get());
  }
  sets_.push_back(std::make_unique<Set>(*this));
  sets_.back()->open(layer, uses);
  return ExpertSetPtr(sets_.back().get());
}

void ResidentExperts::Set::open(int layer, std::span<const ExpertUse> uses) {
  layer_ = layer;
  uses_ = uses;
  num_blocks_ = uses.empty() ? 0 : owner_.layers_[layer].num_blocks;
  next_block_ = 0;
  next_use_ = 0;
  lent_ = true;
}

std::size_t ResidentExperts::Set::take_ready(std::span<ExpertPart> out) {
  const Layer& layer = owner_.layers_[layer_];
  std::size_t taken = 0;
  while (taken < out.size() && next_block_ < num_blocks_) {
    ExpertPart part =
        layer.parts[static_cast<std::size_t>(uses_[next_use_].expert) * layer.num_blocks +
                    next_block_];
    part.use = static_cast<int>(next_use_);
    out[taken++] = part;
    if (++next_use_ == uses_.size()) {
      next_use_ = 0;
      ++next_block_;
    }
  }
  return taken;
}

}  // namespace stoker
