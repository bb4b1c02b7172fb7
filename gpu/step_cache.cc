#include "gpu/step_cache.h"

#include <algorithm>

namespace stoker::gpu {
namespace {

constexpr std::size_t kStepsAlive = 64;  // far more than sessions at work; the oldest is forgotten

}  // namespace

StepCache::Entry& StepCache::entry_for(const StepView& step) {
  for (Entry& entry : entries_) {
    if (entry.step == &step) return entry;
  }
  if (entries_.size() < kStepsAlive) return entries_.emplace_back();
  return *std::min_element(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return a.last_begin < b.last_begin;
  });
}

Status StepCache::begin(const StepView& step, StagingRing& staging, const Stream& stream) {
  const std::size_t num_rows = step.tokens.size();
  CHECK(step.positions.size() == num_rows, "{} positions for {} rows", step.positions.size(),
        num_rows);
  // One block of int32, in the order of StepTables.
  packed_.clear();
  const auto append = [&](std::span<const std::int32_t> values) {
    const std::size_t at = packed_.size();
    packed_.insert(packed_.end(), values.begin(), values.end());
    return at;
  };
  const std::size_t tokens = append(step.tokens);
  const std::size_t positions = append(step.positions);
  const std::size_t logit_rows = append(step.logit_rows);
  const std::size_t latent_first = packed_.size(), index_first = latent_first + num_rows;
  packed_.resize(packed_.size() + 2 * num_rows);
  std::int32_t latent_at = 0, index_at = 0;
  std::size_t sequence_idx = 0, covered = 0;
  std::vector<std::int32_t>& p = packed_;
  for (const SequencePages& pages : step.sequences) {
    for (const RowRange& range : step.ranges) {
      if (range.sequence != static_cast<int>(sequence_idx)) continue;
      std::fill_n(p.begin() + static_cast<std::ptrdiff_t>(latent_first) + range.row_begin,
                  range.num_rows, latent_at);
      std::fill_n(p.begin() + static_cast<std::ptrdiff_t>(index_first) + range.row_begin,
                  range.num_rows, index_at);
      covered += static_cast<std::size_t>(range.num_rows);
    }
    latent_at += static_cast<std::int32_t>(pages.latent.size());
    index_at += static_cast<std::int32_t>(pages.index.size());
    ++sequence_idx;
  }
  CHECK(covered == num_rows || step.sequences.empty(), "ranges cover {} of {} rows", covered,
        num_rows);
  const std::size_t latent_pages = packed_.size();
  for (const SequencePages& pages : step.sequences) append(pages.latent);
  const std::size_t index_pages = packed_.size();
  for (const SequencePages& pages : step.sequences) append(pages.index);

  Entry& entry = entry_for(step);
  entry.step = &step;
  entry.last_begin = ++num_begins_;
  const auto bytes = static_cast<std::int64_t>(packed_.size() * sizeof(std::int32_t));
  if (entry.memory.bytes() < bytes) {
    RETURN_IF_ERROR(entry.memory.grow(2 * bytes), "tables of a step");
  }
  RETURN_IF_ERROR(staging.copy(entry.memory.data(), packed_.data(), bytes, stream));
  const auto* base = reinterpret_cast<const std::int32_t*>(entry.memory.data());
  entry.tables = {static_cast<int>(num_rows),
                  static_cast<int>(step.logit_rows.size()),
                  base + tokens,
                  base + positions,
                  base + logit_rows,
                  base + latent_first,
                  base + index_first,
                  base + latent_pages,
                  base + index_pages};
  return {};
}

const StepTables& StepCache::tables(const StepView& step) const {
  for (const Entry& entry : entries_) {
    if (entry.step == &step) return entry.tables;
  }
  CHECK(false, "an operation of a step that was not begun");
  return entries_.front().tables;
}

}  // namespace stoker::gpu
