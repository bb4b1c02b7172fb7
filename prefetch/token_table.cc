#include "prefetch/token_table.h"

#include <algorithm>

namespace stoker {

void TokenTable::store(TokenId token, int place, std::span<const std::int32_t> experts) {
  const auto entry = std::span(experts_).subspan(begin(token, place), top_k_);
  const std::size_t count = std::min(experts.size(), entry.size());
  for (std::size_t i = 0; i < entry.size(); ++i)
    entry[i] = i < count ? static_cast<std::uint16_t>(experts[i]) : kNone;
}

std::span<const std::uint16_t> TokenTable::find(TokenId token, int place) const {
  const auto entry = std::span(experts_).subspan(begin(token, place), top_k_);
  const auto end = std::find(entry.begin(), entry.end(), kNone);
  return entry.first(static_cast<std::size_t>(end - entry.begin()));
}

}  // namespace stoker
