#include "storage/data_file.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "core/model/tensor_table.h"
#include "storage/aligned_bytes.h"

namespace stoker::storage {

std::string expert_file_name(int index) { return fmt::format("experts-{:03}.safetensors", index); }

std::string packed_expert_name(ExpertId id) {
  return fmt::format("{}mlp.experts.{}", layer_prefix(id.layer), id.expert);
}

std::optional<ExpertId> packed_expert_named(std::string_view name) {
  ExpertId id;
  for (const auto& [prefix, value] :
       {std::pair<std::string_view, int*>("model.layers.", &id.layer),
        std::pair<std::string_view, int*>(".mlp.experts.", &id.expert)}) {
    if (!name.starts_with(prefix)) return std::nullopt;
    name.remove_prefix(prefix.size());
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), *value);
    if (error != std::errc() || *value < 0) return std::nullopt;
    name.remove_prefix(static_cast<std::size_t>(end - name.data()));
  }
  if (!name.empty()) return std::nullopt;
  return id;
}

DataFileLayout DataFileLayout::make(std::vector<TensorDecl> tensors,
                                    const std::vector<int>& num_checksums) {
  CHECK(tensors.size() == num_checksums.size(), "{} {}", tensors.size(), num_checksums.size());
  DataFileLayout layout;
  std::int64_t data_bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    data_bytes += tensors[i].bytes();
    layout.num_checksums += num_checksums[i];
  }
  layout.table_bytes =
      align_up(data_bytes + layout.num_checksums * kChecksumBytes, kPage) - data_bytes;
  tensors.push_back({kChecksumTensor, StoredType::kU8, {layout.table_bytes}});
  const SafetensorsHead head =
      safetensors_head(tensors, {.data_align = kPage, .metadata = {{"format", "pt"}}});
  layout.head = head.bytes;
  layout.tensors.resize(tensors.size() - 1);
  std::int64_t next = 0;
  for (const std::size_t i : head.order) {
    if (i == layout.tensors.size()) {
      layout.table_offset = head.places[i].offset;
      continue;
    }
    layout.tensors[i] = {head.places[i].offset, head.places[i].bytes, next, num_checksums[i]};
    next += num_checksums[i];
  }
  layout.file_bytes = head.file_bytes;
  return layout;
}

std::string checksum_table(const std::vector<std::uint64_t>& checksums, std::int64_t table_bytes) {
  std::string table;
  table.reserve(static_cast<std::size_t>(table_bytes));
  for (const std::uint64_t checksum : checksums) {
    for (int i = 0; i < kChecksumBytes; ++i) table += static_cast<char>(checksum >> (8 * i) & 0xff);
  }
  CHECK(std::cmp_less_equal(table.size(), table_bytes), "{} {}", table.size(), table_bytes);
  table.resize(static_cast<std::size_t>(table_bytes), '\0');
  return table;
}

std::vector<std::uint64_t> checksums_of(std::string_view table, std::int64_t count) {
  CHECK(std::cmp_less_equal(count * kChecksumBytes, table.size()), "{} {}", count, table.size());
  std::vector<std::uint64_t> checksums(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < checksums.size(); ++i) {
    for (std::size_t byte = kChecksumBytes; byte-- > 0;) {
      checksums[i] =
          checksums[i] << 8 | static_cast<unsigned char>(table[i * kChecksumBytes + byte]);
    }
  }
  return checksums;
}

}  // namespace stoker::storage
