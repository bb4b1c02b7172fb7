// Many short strings in one block: 130,000 vocabulary entries without 130,000 allocations.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace stoker {

class StringList {
 public:
  void push_back(std::string_view text) {
    characters_.append(text);
    ends_.push_back(characters_.size());
  }

  std::size_t size() const { return ends_.size(); }

  std::string_view operator[](std::size_t i) const {
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(characters_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string characters_;
  std::vector<std::size_t> ends_;
};

}  // namespace stoker
