// The text: a line "stoker-usage 1 MODEL NUM_LAYERS NUM_EXPERTS", then for every layer with counts
// "LAYER COUNT COUNT …", one count per expert in thousandths of the largest.
#include "prefetch/usage_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

namespace stoker {
namespace {

constexpr std::string_view kMagic = "stoker-usage";
constexpr double kHalfLifeSteps = 4096.0;
constexpr double kScale = 1000.0;     // in the text, of the busiest expert
constexpr double kPastUses = 1000.0;  // that the busiest expert of a loaded history stands for

// Takes the first word of `line` off.
std::string_view next_word(std::string_view& line) {
  const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
  const std::size_t end = std::min(line.find(' ', begin), line.size());
  const std::string_view word = line.substr(begin, end - begin);
  line.remove_prefix(end);
  return word;
}

std::optional<int> next_int(std::string_view& line) {
  const std::string_view word = next_word(line);
  int value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return value;
}

std::string_view next_line(std::string_view& text) {
  const std::size_t end = std::min(text.find('\n'), text.size());
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

Error corrupt(int line) {
  return make_error(ErrorCode::kCorrupt, "line {} of the usage history is damaged", line);
}

}  // namespace

UsageHistory::UsageHistory(ExpertGrid grid)
    : grid_(grid), counts_(static_cast<std::size_t>(grid.size()), 0.0) {}

// Instead of fading all counts, later uses count more; once in a long while all are scaled back.
void UsageHistory::observe(int layer, std::span<const ExpertUse> uses) {
  if (layer <= layer_) {
    unit_ *= std::exp2(1.0 / kHalfLifeSteps);
    if (unit_ > 1e100) {
      for (double& count : counts_) count /= unit_;
      unit_ = 1.0;
    }
  }
  layer_ = layer;
  for (const ExpertUse& use : uses) {
    counts_[grid_.index({layer, use.expert})] += unit_;
    ++num_observed_;
  }
}

std::vector<ExpertId> UsageHistory::most_used() const {
  std::vector<int> used;
  for (int i = 0; i < grid_.size(); ++i) {
    if (counts_[i] > 0.0) used.push_back(i);
  }
  std::sort(used.begin(), used.end(), [&](int a, int b) {
    const double count_a = counts_[a];
    const double count_b = counts_[b];
    return count_a != count_b ? count_a > count_b : a < b;
  });
  std::vector<ExpertId> ids;
  ids.reserve(used.size());
  for (const int i : used) ids.push_back(grid_.id(i));
  return ids;
}

std::string UsageHistory::to_text(std::string_view model) const {
  std::string text =
      fmt::format("{} 1 {} {} {}\n", kMagic, model, grid_.num_layers, grid_.num_experts);
  const double largest = *std::max_element(counts_.begin(), counts_.end());
  if (largest == 0.0) return text;
  for (int layer = 0; layer < grid_.num_layers; ++layer) {
    const auto begin = counts_.begin() + grid_.index({layer, 0});
    const auto end = begin + grid_.num_experts;
    if (std::all_of(begin, end, [](double count) { return count == 0.0; })) continue;
    text += std::to_string(layer);
    for (auto count = begin; count != end; ++count)
      text += fmt::format(" {}", std::lround(std::ceil(*count / largest * kScale)));
    text += '\n';
  }
  return text;
}

Status UsageHistory::from_text(std::string_view text, std::string_view model) {
  std::string_view line = next_line(text);
  if (next_word(line) != kMagic || next_int(line) != 1) return corrupt(1);
  const std::string_view written_for = next_word(line);
  const std::optional<int> num_layers = next_int(line), num_experts = next_int(line);
  if (!num_layers || !num_experts) return corrupt(1);
  if (written_for != model || *num_layers != grid_.num_layers ||
      *num_experts != grid_.num_experts) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the usage history is of another model ({}, {} layers of {} experts)",
                      written_for, *num_layers, *num_experts);
  }
  std::vector<double> counts(counts_.size(), 0.0);
  std::int64_t num_observed = 0;
  for (int number = 2; !text.empty(); ++number) {
    line = next_line(text);
    const std::optional<int> layer = next_int(line);
    if (!layer || *layer < 0 || *layer >= grid_.num_layers) return corrupt(number);
    for (int expert = 0; expert < grid_.num_experts; ++expert) {
      const std::optional<int> count = next_int(line);
      if (!count || *count < 0) return corrupt(number);
      counts[grid_.index({*layer, expert})] = *count / kScale;
      if (*count > 0) ++num_observed;
    }
    if (!next_word(line).empty()) return corrupt(number);
  }
  counts_ = std::move(counts);
  num_observed_ = num_observed;
  unit_ = 1.0 / kPastUses;
  return {};
}

}  // namespace stoker
