// Reading the two JSON documents of a safetensors checkpoint as streams of events: a header may
// have 100 MB, and a tree of it would take many times that.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace stoker::storage {

// A tensor's description as it stands in the header; only JSON types are checked.
struct RawEntry {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Names are unique; a shape has at most 8 dimensions.
Status parse_header_json(std::string_view json, std::vector<RawEntry>& entries,
                         std::map<std::string, std::string>& metadata);

}  // namespace stoker::storage
