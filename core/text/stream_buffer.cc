#include "core/text/stream_buffer.h"

#include <algorithm>

#include "core/base/check.h"

namespace stoker {

std::string_view StreamBuffer::view(std::size_t from, std::size_t to) const {
  CHECK(begin() <= from && from <= to && to <= end(), "{} <= {} <= {} <= {}", begin(), from, to,
        end());
  return std::string_view(text_).substr(from - dropped_, to - from);
}

void StreamBuffer::consume_to(std::size_t offset) {
  CHECK(begin() <= offset && offset <= end(), "{} <= {} <= {}", begin(), offset, end());
  consumed_ = offset - dropped_;
  // Moving the rest to the front only when at least as much goes away keeps the whole linear.
  if (consumed_ >= 4096 && consumed_ >= text_.size() / 2) {
    text_.erase(0, consumed_);
    dropped_ += consumed_;
    consumed_ = 0;
  }
}

MarkerFinder::MarkerFinder(std::vector<std::string_view> markers) : markers_(std::move(markers)) {
  for (const std::string_view marker : markers_) {
    if (leads_.find(marker.front()) == std::string::npos) leads_ += marker.front();
  }
}

std::optional<MarkerFinder::Hit> MarkerFinder::find(const StreamBuffer& buffer, std::size_t from) {
  if (hit_ && hit_->pos >= from) return hit_;
  hit_.reset();
  searched_ = std::max(searched_, from);
  const std::size_t base = searched_;
  const std::string_view text = buffer.rest_from(base);
  std::size_t i = 0;
  while ((i = text.find_first_of(leads_, i)) != std::string_view::npos) {
    const std::string_view rest = text.substr(i);
    for (const std::string_view marker : markers_) {
      if (rest.starts_with(marker)) {
        searched_ = base + i;
        hit_ = Hit{searched_, marker};
        return hit_;
      }
      if (!buffer.closed() && marker.starts_with(rest)) {
        searched_ = base + i;
        return std::nullopt;
      }
    }
    ++i;
  }
  searched_ = buffer.end();
  return std::nullopt;
}

}  // namespace stoker
