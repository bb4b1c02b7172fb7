// Whatever an index lists stays inside its directory, each tensor once.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string_view>

#include "core/base/check.h"
#include "storage/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stoker;
  const auto index = storage::parse_safetensors_index({reinterpret_cast<const char*>(data), size});
  if (!index.ok()) {
    CHECK(!index.error().message().empty());
    return 0;
  }
  std::set<std::string_view> names;
  const std::filesystem::path dir = "/checkpoint";
  for (const storage::ShardedName& name : *index) {
    CHECK(names.insert(name.tensor).second, "{}", name.tensor);
    CHECK((dir / name.file).lexically_normal().parent_path() == dir, "{}", name.file);
  }
  return 0;
}
