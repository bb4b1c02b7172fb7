// The input is a whole safetensors file. What parses lies inside it and touches its neighbours.
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>

#include "core/base/check.h"
#include "storage/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stoker;
  const auto file_bytes = static_cast<std::int64_t>(size);
  const Result<storage::SafetensorsHeader> header =
      storage::parse_safetensors(std::as_bytes(std::span(data, size)), file_bytes);
  if (!header.ok()) {
    CHECK(!header.error().message().empty());
    return 0;
  }
  std::int64_t end = header->data_begin;
  std::set<std::string_view> names;
  for (const storage::SafetensorsEntry& entry : header->entries) {
    CHECK(names.insert(entry.name).second, "{}", entry.name);
    CHECK(entry.offset == end, "{} at {}, not {}", entry.name, entry.offset, end);
    std::int64_t bytes = storage::stored_type_info(entry.type).bytes;
    for (const std::int64_t dim : entry.shape) bytes *= dim;
    CHECK(bytes == entry.bytes, "{}", entry.name);
    end += bytes;
  }
  CHECK(end == file_bytes, "{} of {}", end, file_bytes);
  return 0;
}
