#include "gpu/step_cache.h"

#include <algorithm>

namespace stoker::gpu {
namespace {

constexpr std::size_t kStepsAlive = 64;  // far more than sessions at work; the oldest is forgotten

}  // namespace

std::int64_t step_table_bytes(std::int64_t num_rows, std::int64_t num_logit_rows,
                              std::int64_t num_pages) {
  constexpr std::int64_t kPerRow = 4;  // token, position, first page of each stream
  return (kPerRow * num_rows + num_logit_rows + num_pages) *
         static_cast<std::int64_t>(sizeof(std::int32_t));
}

Status StepCache::reserve(std::int64_t bytes) {
  entries_.reserve(kStepsAlive);
  for (int i = 0; i < kReservedSteps; ++i) {
    Entry entry;
    RETURN_IF_ERROR(entry.memory.grow(bytes / kReservedSteps), "tables of a step");
    entries_.push_back(std::move(entry));
  }
  packed_.reserve(static_cast<std::size_t>(bytes / kReservedSteps) / sizeof(std::int32_t));
  return {};
}

std::int64_t StepCache::bytes() const {
  std::int64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.memory.bytes();
  return bytes;
}

StepCache::Entry& StepCache::entry_for(const StepView& step) {
  for (Entry& entry : entries_) {
    if (entry.step == &step) return entry;
  }
  for (Entry& entry : entries_) {
    if (entry.step == nullptr) return entry;
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
  // One block of int32. What layers do not read comes last, so that the rest stays where it is.
  packed_.clear();
  const auto append = [&](std::span<const std::int32_t> values) {
    const std::size_t at = packed_.size();
    packed_.insert(packed_.end(), values.begin(), values.end());
    return at;
  };
  const std::size_t tokens = append(step.tokens);
  const std::size_t positions = append(step.positions);
  const std::size_t latent_first = packed_.size(), index_first = latent_first + num_rows;
  packed_.resize(packed_.size() + 2 * num_rows);
  // Both streams' pages in one table.
  std::int32_t latent_at = 0, index_at = 0;
  for (const SequencePages& pages : step.sequences) {
    index_at += static_cast<std::int32_t>(pages.latent.size());
  }
  std::size_t sequence_idx = 0, covered = 0;
  std::vector<std::int32_t>& p = packed_;
  for (const SequencePages& pages : step.sequences) {
    for (const RowRange& range : step.ranges) {
      if (range.sequence != static_cast<int>(sequence_idx)) continue;
      CHECK(range.row_begin >= 0 &&
                static_cast<std::size_t>(range.row_begin + range.num_rows) <= num_rows,
            "rows [{}, + {}) of {}", range.row_begin, range.num_rows, num_rows);
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
  const std::size_t pages_at = packed_.size();
  for (const SequencePages& pages : step.sequences) append(pages.latent);
  for (const SequencePages& pages : step.sequences) append(pages.index);
  const std::size_t logit_rows = append(step.logit_rows);

  Entry& entry = entry_for(step);
  entry.step = &step;
  entry.last_begin = ++num_begins_;
  const std::int64_t bytes =
      step_table_bytes(static_cast<std::int64_t>(num_rows),
                       static_cast<std::int64_t>(step.logit_rows.size()), index_at);
  CHECK(packed_.size() * sizeof(std::int32_t) == static_cast<std::size_t>(bytes), "{} of {} bytes",
        packed_.size() * sizeof(std::int32_t), bytes);
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
                  base + pages_at,
                  base + pages_at};
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
