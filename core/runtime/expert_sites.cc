#include "core/runtime/expert_sites.h"

#include <algorithm>

#include "core/runtime/transfer.h"

namespace stoker {
namespace {

// Steps of at most this many rows have their inputs sent to the host before it is known whether it
// gets any expert: 14 KB a row, and a wait less for those that it gets.
constexpr int kEagerRows = 16;

constexpr int kNoSite = -1;

}  // namespace

std::int64_t ExpertSites::bytes_needed(const ModelConfig& config, DType activations,
                                       WorkspaceLimits limits) {
  const ExpertWidths widths = expert_widths(config);
  const std::int64_t slots = std::int64_t{limits.max_rows} * widths.top_k;
  return (limits.max_rows * config.hidden_size + slots * (widths.moe + config.hidden_size)) *
         dtype_bytes(activations);
}

Result<std::unique_ptr<ExpertSites>> ExpertSites::create(
    const ModelConfig& config, const Placement& placement, WorkspaceLimits limits,
    std::span<const std::unique_ptr<Workspace>> workspaces, const Clock& clock) {
  auto sites = std::make_unique<ExpertSites>();
  sites->clock_ = &clock;
  const ExpertWidths widths = expert_widths(config);
  const std::int64_t slots = std::int64_t{limits.max_rows} * widths.top_k;
  // Host memory that others copy from and to is allocated by whoever may pin it.
  Backend& pins = placement.dense(0);
  const DType act = pins.activation_dtype();
  for (Backend* backend : placement.backends()) {
    Site site;
    site.backend = backend;
    if (const Workspace* w = workspaces[sites->sites_.size()].get()) {
      site.x = w->normed.view();
      site.hidden = w->expert_hidden.view();
      site.out = w->expert_out.view();
    } else if (widths.moe > 0) {
      const auto allocate = [&](std::int64_t rows, std::int64_t cols) {
        return backend->device() == kHost ? pins.allocate_host(act, rows, cols)
                                          : backend->allocate(act, rows, cols);
      };
      ASSIGN_OR_RETURN(site.own_x, allocate(limits.max_rows, config.hidden_size));
      ASSIGN_OR_RETURN(site.own_hidden, allocate(slots, widths.moe));
      ASSIGN_OR_RETURN(site.own_out, allocate(slots, config.hidden_size));
      site.x = site.own_x.view();
      site.hidden = site.own_hidden.view();
      site.out = site.own_out.view();
    }
    sites->sites_.push_back(std::move(site));
  }
  for (const bool host : {false, true}) {
    for (int i = 0; i < static_cast<int>(sites->sites_.size()); ++i) {
      if ((sites->sites_[i].backend->device() == kHost) == host) sites->order_.push_back(i);
    }
  }
  sites->site_of_use_.reserve(static_cast<std::size_t>(widths.num_experts));
  return sites;
}

void ExpertSites::begin(const StepView& step, int dense, int num_slots) {
  dense_ = dense;
  num_rows_ = step.num_rows();
  num_slots_ = num_slots;
  host_us_ = 0;
  site_of_use_.clear();
  for (Site& site : sites_) site.has_input = site.used = false;
  sites_[dense_].has_input = true;
  if (num_rows_ > kEagerRows) return;
  for (Site& site : sites_) {
    if (site.has_input || site.backend->device() != kHost) continue;
    sites_[dense_].backend->copy_out(site.x.data, rows(sites_[dense_].x));
    site.has_input = true;
  }
}

void ExpertSites::send_input(Site& site) {
  const Site& dense = sites_[dense_];
  transfer(*dense.backend, rows(dense.x), *site.backend, rows(site.x));
  site.has_input = true;
}

int ExpertSites::index_of(DeviceId device) const {
  for (int i = 0; i < static_cast<int>(sites_.size()); ++i) {
    if (sites_[i].backend->device() == device) return i;
  }
  CHECK(false, "no backend for device {}", device.index);
  return 0;
}

void ExpertSites::run(const StepView& step, std::span<const ExpertUse> uses,
                      std::span<const ExpertPart> parts, std::span<ExpertPart> scratch) {
  site_of_use_.resize(uses.size(), kNoSite);
  for (const ExpertPart& part : parts) {
    int& site = site_of_use_[static_cast<std::size_t>(part.use)];
    const int index = index_of(part.site);
    CHECK(site == kNoSite || site == index, "expert {} is computed in two places",
          uses[static_cast<std::size_t>(part.use)].expert);
    site = index;
  }
  for (const int index : order_) {
    Site& site = sites_[index];
    std::size_t count = 0;
    for (const ExpertPart& part : parts) {
      if (site_of_use_[static_cast<std::size_t>(part.use)] == index) scratch[count++] = part;
    }
    if (count == 0) continue;
    if (!site.has_input) send_input(site);
    site.used = true;
    const bool timed = site.backend->device() == kHost;  // it computes at once
    const std::int64_t start_us = timed ? clock_->now_us() : 0;
    site.backend->experts(step, {rows(site.x), slots(site.hidden, 0, num_slots_),
                                 slots(site.out, 0, num_slots_), uses, scratch.first(count)});
    if (timed) host_us_ += clock_->now_us() - start_us;
  }
}

void ExpertSites::collect(std::span<const ExpertUse> uses) {
  const Site& dense = sites_[dense_];
  // Uses that follow one another and were computed in one place travel together.
  for (std::size_t first = 0; first < site_of_use_.size();) {
    std::size_t last = first;
    std::int64_t count = static_cast<std::int64_t>(uses[first].rows.size());
    while (last + 1 < site_of_use_.size() && site_of_use_[last + 1] == site_of_use_[first]) {
      count += static_cast<std::int64_t>(uses[++last].rows.size());
    }
    const int index = site_of_use_[first];
    if (index != dense_ && index != kNoSite) {
      const Site& site = sites_[index];
      const std::int64_t begin = uses[first].slot_begin;
      transfer(*site.backend, slots(site.out, begin, count), *dense.backend,
               slots(dense.out, begin, count));
    }
    first = last + 1;
  }
}

TensorView ExpertSites::out() const { return slots(sites_[dense_].out, 0, num_slots_); }

void ExpertSites::poll() {
  for (const Site& site : sites_) {
    if (site.used) (void)site.backend->done(site.backend->record());
  }
}

void ExpertSites::report_times(ExpertProvider& experts) const {
  if (host_us_ > 0) experts.note_host_time(static_cast<double>(host_us_));
  for (const Site& site : sites_) {
    if (!site.used) continue;
    if (const std::optional<ExpertTiming> timing = site.backend->take_expert_timing()) {
      experts.note_device_time(site.backend->device(), *timing);
    }
  }
}

Status ExpertSites::status() const {
  for (const Site& site : sites_) {
    if (site.used) RETURN_IF_ERROR(site.backend->status());
  }
  return {};
}

}  // namespace stoker
