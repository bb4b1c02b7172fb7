// Text that arrives in pieces, and searches in it that never look at a byte twice. Offsets count
// from the start of the stream.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stoker {

class StreamBuffer {
 public:
  void append(std::string_view piece) { text_ += piece; }
  void close() { closed_ = true; }

  bool closed() const { return closed_; }  // nothing more will come
  std::size_t begin() const { return dropped_ + consumed_; }
  std::size_t end() const { return dropped_ + text_.size(); }

  // Valid until the next call that is not const. Requires: begin() <= from <= to <= end().
  std::string_view view(std::size_t from, std::size_t to) const;
  std::string_view rest_from(std::size_t from) const { return view(from, end()); }

  void consume_to(std::size_t offset);

 private:
  std::string text_;
  std::size_t dropped_ = 0;   // bytes already removed from text_
  std::size_t consumed_ = 0;  // bytes of text_ that are done with
  bool closed_ = false;
};

// Finds the first of several markers. The offsets asked for must never go back.
class MarkerFinder {
 public:
  struct Hit {
    std::size_t pos;
    std::string_view marker;
    std::size_t end() const { return pos + marker.size(); }
  };

  // No marker may be the beginning of another.
  explicit MarkerFinder(std::vector<std::string_view> markers);

  // The first whole marker at or after `from`.
  std::optional<Hit> find(const StreamBuffer& buffer, std::size_t from);

  // After find() came back empty: no marker begins before this offset, whatever is still to come.
  std::size_t safe_end() const { return searched_; }

 private:
  std::vector<std::string_view> markers_;
  std::string leads_;  // first bytes
  std::size_t searched_ = 0;
  std::optional<Hit> hit_;
};

}  // namespace stoker
