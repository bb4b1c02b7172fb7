#include "tools/trace_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace stoker::tools {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
constexpr int kTopExperts = 4;
constexpr std::int64_t kDistinctWindow = 75;
constexpr double kMissesOfFraction = 0.10;

double ratio(double part, double whole) { return whole > 0.0 ? part / whole : 0.0; }

bool contains(std::span<const std::int16_t> ids, std::int16_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Marks in a row of places, and how many stand between two of them.
class FenwickTree {
 public:
  explicit FenwickTree(std::int64_t size) : sums_(static_cast<std::size_t>(size) + 1) {}
  void add(std::int64_t place, int value) {
    for (std::int64_t i = place + 1; i < std::ssize(sums_); i += i & -i) sums_[i] += value;
  }
  // Of the places before `end`.
  std::int64_t sum(std::int64_t end) const {
    std::int64_t total = 0;
    for (std::int64_t i = end; i > 0; i -= i & -i) total += sums_[i];
    return total;
  }

 private:
  std::vector<std::int32_t> sums_;
};

// For every choice, in the order of `experts`: how many other experts, over all layers, were chosen
// since this one last was; kNever for the first time. An LRU cache of more slots than that holds
// it.
std::vector<std::int64_t> reuse_distances(const RoutingTrace& trace) {
  const std::int64_t per_token = trace.num_layers() * trace.top_k;
  const auto total = static_cast<std::int64_t>(trace.experts.size());
  FenwickTree last_uses(total);
  std::vector<std::int64_t> last(
      static_cast<std::size_t>(trace.num_layers()) * static_cast<std::size_t>(trace.num_experts),
      -1);
  std::vector<std::int64_t> distances(trace.experts.size());
  for (std::int64_t i = 0; i < total; ++i) {
    const std::int64_t place = i % per_token / trace.top_k;
    std::int64_t& previous =
        last[static_cast<std::size_t>(place * trace.num_experts + trace.experts[i])];
    distances[i] = previous < 0 ? kNever : last_uses.sum(i) - last_uses.sum(previous + 1);
    if (previous >= 0) last_uses.add(previous, -1);
    last_uses.add(i, 1);
    previous = i;
  }
  return distances;
}

std::int64_t slots_of(const RoutingTrace& trace, double fraction) {
  return std::llround(fraction * trace.num_layers() * trace.num_experts);
}

void measure_reuse(const RoutingTrace& trace, std::span<const std::int64_t> distances,
                   TraceStatistics& out) {
  const std::int64_t k = trace.top_k;
  std::int64_t repeated = 0;
  for (std::int64_t token = 1; token < trace.num_tokens(); ++token) {
    for (int place = 0; place < trace.num_layers(); ++place) {
      const auto before = trace.chosen(token - 1, place);
      for (const std::int16_t id : trace.chosen(token, place)) repeated += contains(before, id);
    }
  }
  out.overlap = ratio(static_cast<double>(repeated),
                      static_cast<double>((trace.num_tokens() - 1) * trace.num_layers() * k));
  const auto warm =
      distances.subspan(static_cast<std::size_t>(trace.num_tokens() / 2 * trace.num_layers() * k));
  for (std::size_t i = 0; i < kCachedFractions.size(); ++i) {
    const std::int64_t slots = slots_of(trace, kCachedFractions[i]);
    const auto hits =
        std::count_if(warm.begin(), warm.end(), [&](std::int64_t d) { return d < slots; });
    out.lru_hit[i] = ratio(static_cast<double>(hits), static_cast<double>(warm.size()));
  }
}

// How evenly a layer's experts are used.
void measure_spread(const RoutingTrace& trace, TraceStatistics& out) {
  const int num_layers = trace.num_layers();
  double windows = 0.0;
  for (int place = 0; place < num_layers; ++place) {
    std::vector<std::int64_t> uses(static_cast<std::size_t>(trace.num_experts));
    std::vector<std::int64_t> seen(uses.size(), -1);  // the window that last touched it
    for (std::int64_t token = 0; token < trace.num_tokens(); ++token) {
      const std::int64_t window = token / kDistinctWindow;
      const bool whole = (window + 1) * kDistinctWindow <= trace.num_tokens();
      if (whole && token % kDistinctWindow == 0) windows += 1.0;
      for (const std::int16_t id : trace.chosen(token, place)) {
        ++uses[id];
        if (whole && std::exchange(seen[id], window) != window) out.distinct_75 += 1.0;
      }
    }
    const auto total = static_cast<double>(trace.num_tokens() * trace.top_k);
    double entropy = 0.0;
    for (const std::int64_t count : uses) {
      const double share = static_cast<double>(count) / total;
      if (count > 0) entropy -= share * std::log(share);
    }
    out.entropy += trace.num_experts > 1 ? entropy / std::log(trace.num_experts) / num_layers : 0.0;
    std::sort(uses.rbegin(), uses.rend());
    double top = 0.0;
    for (int i = 0; i < std::min(kTopExperts, trace.num_experts); ++i)
      top += static_cast<double>(uses[i]);
    out.top_share += top / total / num_layers;
  }
  out.distinct_75 = ratio(out.distinct_75, windows);
}

// Of the layers at `places`, made `lead` before.
struct Places {
  int begin, end;
};
GuessStatistics measure_guesses(const RoutingTrace& trace, int lead, Places places,
                                std::span<const std::int64_t> distances) {
  const std::int64_t k = trace.top_k;
  const auto num_ranked = static_cast<std::size_t>(trace.num_ranked);
  const std::int64_t slots = slots_of(trace, kMissesOfFraction);
  std::vector<double> found(num_ranked), made(num_ranked);
  double chosen = 0.0, misses = 0.0, foreseen_misses = 0.0;
  for (std::int64_t token = 0; token < trace.num_tokens(); ++token) {
    for (int place = places.begin; place < places.end; ++place) {
      const auto guesses = trace.guessed(lead, token, place);
      const auto experts = trace.chosen(token, place);
      for (std::size_t rank = 0; rank < num_ranked; ++rank) {
        made[rank] += guesses[rank] != kNoGuess;
        found[rank] += contains(experts, guesses[rank]);
      }
      chosen += static_cast<double>(k);
      if (token < trace.num_tokens() / 2) continue;
      const auto first = guesses.first(std::min<std::size_t>(guesses.size(), trace.top_k));
      for (std::int64_t i = 0; i < k; ++i) {
        if (distances[(token * trace.num_layers() + place) * k + i] < slots) continue;
        misses += 1.0;
        foreseen_misses += contains(first, experts[i]);
      }
    }
  }
  GuessStatistics out;
  double cumulative = 0.0;
  for (std::size_t rank = 0; rank < num_ranked; ++rank) {
    cumulative += found[rank];
    out.useful.push_back(ratio(found[rank], made[rank]));
    out.recall.push_back(ratio(cumulative, chosen));
  }
  out.recall_on_misses = ratio(foreseen_misses, misses);
  return out;
}

}  // namespace

TraceStatistics trace_statistics(const RoutingTrace& trace) {
  TraceStatistics out;
  out.num_tokens = trace.num_tokens();
  const std::vector<std::int64_t> distances = reuse_distances(trace);
  measure_reuse(trace, distances, out);
  measure_spread(trace, out);
  for (int lead = 1; trace.num_ranked > 0 && lead <= kMaxLead; ++lead) {
    out.guesses[static_cast<std::size_t>(lead - 1)] =
        measure_guesses(trace, lead, {lead, trace.num_layers()}, distances);
  }
  if (trace.num_ranked > 0 && trace.has_guess(1, 0))
    out.before_first = measure_guesses(trace, 1, {0, 1}, distances);
  return out;
}

std::string statistics_to_text(const TraceStatistics& statistics) {
  std::string text;
  const auto out = std::back_inserter(text);
  fmt::format_to(out, "{:<38} {}\n", "tokens", statistics.num_tokens);
  fmt::format_to(out, "{:<38} {:.3f}\n", "chosen by the token before, too", statistics.overlap);
  fmt::format_to(out, "{:<38} {:.3f}\n", "entropy of use (1: equal)", statistics.entropy);
  fmt::format_to(out, "{:<38} {:.3f}\n", "share of the four most used experts",
                 statistics.top_share);
  fmt::format_to(out, "{:<38} {:.0f}\n", "experts touched by 75 tokens", statistics.distinct_75);
  fmt::format_to(out, "\nLRU cache of     ");
  for (const double fraction : kCachedFractions) fmt::format_to(out, "{:5.0f}%", 100.0 * fraction);
  fmt::format_to(out, "\nhits             ");
  for (const double hit : statistics.lru_hit) fmt::format_to(out, " {:.3f}", hit);
  const auto add = [&](std::string_view title, const GuessStatistics& guesses) {
    if (guesses.useful.empty()) return;
    fmt::format_to(out, "\n\n{:<18}", title);
    for (std::size_t rank = 0; rank < guesses.useful.size(); ++rank)
      fmt::format_to(out, "{:5}", rank + 1);
    fmt::format_to(out, "\n  useful by rank  ");
    for (const double share : guesses.useful) fmt::format_to(out, " {:.2f}", share);
    fmt::format_to(out, "\n  recall to rank  ");
    for (const double share : guesses.recall) fmt::format_to(out, " {:.2f}", share);
    fmt::format_to(out, "\n  recall, of what a cache of 10 % misses: {:.2f}",
                   guesses.recall_on_misses);
  };
  add("guesses 1 ahead", statistics.guesses[0]);
  add("guesses 2 ahead", statistics.guesses[1]);
  add("of the first layer", statistics.before_first);
  return text + "\n";
}

}  // namespace stoker::tools
