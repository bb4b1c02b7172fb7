#include "storage/safetensors_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace stoker::storage {
namespace {

constexpr std::int64_t kPrefixBytes = 8;

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A JSON object from `name`: `value` pairs that are JSON already.
class JsonObject {
 public:
  void add(const std::string& name, const std::string& value) {
    text_ += fmt::format("{}{}: {}", text_.size() == 1 ? "" : ", ", quoted(name), value);
  }
  std::string close() && { return std::move(text_) + "}"; }

 private:
  std::string text_ = "{";
};

std::string metadata_json(const std::map<std::string, std::string>& metadata) {
  JsonObject object;
  for (const auto& [name, value] : metadata) object.add(name, quoted(value));
  return std::move(object).close();
}

}  // namespace

std::int64_t TensorDecl::bytes() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{stored_type_info(type).bytes},
                         std::multiplies<>());
}

SafetensorsHead safetensors_head(const std::vector<TensorDecl>& tensors,
                                 const SafetensorsOptions& options) {
  SafetensorsHead head;
  // 1. The order in the file.
  head.order.resize(tensors.size());
  std::iota(head.order.begin(), head.order.end(), std::size_t{0});
  std::stable_sort(head.order.begin(), head.order.end(), [&](std::size_t a, std::size_t b) {
    return stored_type_info(tensors[a].type).bytes > stored_type_info(tensors[b].type).bytes;
  });
  // 2. The header, padded so that the data section is aligned.
  head.places.resize(tensors.size());
  JsonObject header;
  if (!options.metadata.empty()) header.add("__metadata__", metadata_json(options.metadata));
  std::int64_t end = 0;
  for (const std::size_t i : head.order) {
    const std::int64_t begin = end;
    end += tensors[i].bytes();
    head.places[i] = {begin, end - begin};
    header.add(tensors[i].name,
               fmt::format(R"({{"dtype": "{}", "shape": [{}], "data_offsets": [{}, {}]}})",
                           stored_type_info(tensors[i].type).name,
                           fmt::join(tensors[i].shape, ", "), begin, end));
  }
  std::string json = std::move(header).close();
  const std::int64_t align = std::max<std::int64_t>(options.data_align, 8);
  const std::int64_t unpadded = kPrefixBytes + static_cast<std::int64_t>(json.size());
  const std::int64_t data_begin = (unpadded + align - 1) / align * align;
  json.resize(static_cast<std::size_t>(data_begin - kPrefixBytes), ' ');
  for (int i = 0; i < kPrefixBytes; ++i) {
    head.bytes += static_cast<char>(json.size() >> (8 * i) & 0xff);
  }
  head.bytes += json;
  for (SafetensorsHead::Place& place : head.places) place.offset += data_begin;
  head.file_bytes = data_begin + end;
  return head;
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::filesystem::path& path,
                                                    std::vector<TensorDecl> tensors,
                                                    const SafetensorsOptions& options) {
  SafetensorsHead head = safetensors_head(tensors, options);
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  RETURN_IF_ERROR(file.write(0, std::as_bytes(std::span(head.bytes))));
  SafetensorsWriter writer(std::move(file), std::move(tensors));
  writer.places_ = std::move(head.places);
  writer.done_.resize(writer.places_.size());
  return writer;
}

Status SafetensorsWriter::append(std::size_t index, std::span<const std::byte> bytes) {
  CHECK(index < places_.size(), "tensor {} of {}", index, places_.size());
  const SafetensorsHead::Place& place = places_[index];
  std::int64_t& done = done_[index];
  CHECK(std::cmp_less_equal(bytes.size(), place.bytes - done), "{}: {} bytes appended to {} of {}",
        tensors_[index].name, bytes.size(), done, place.bytes);
  RETURN_IF_ERROR(file_.write(place.offset + done, bytes));
  done += static_cast<std::int64_t>(bytes.size());
  return {};
}

Status SafetensorsWriter::finish() {
  for (std::size_t i = 0; i < places_.size(); ++i) {
    CHECK(done_[i] == places_[i].bytes, "{}: {} of {} bytes", tensors_[i].name, done_[i],
          places_[i].bytes);
  }
  return file_.commit();
}

Result<CheckpointWriter> CheckpointWriter::create(const std::filesystem::path& dir,
                                                  std::vector<TensorDecl> tensors, int num_shards,
                                                  const SafetensorsOptions& options) {
  std::error_code code;
  std::filesystem::create_directories(dir, code);
  if (code) {
    return make_error(ErrorCode::kIo, "{}: cannot create: {}", dir.string(), code.message());
  }
  const std::int64_t total = std::accumulate(
      tensors.begin(), tensors.end(), std::int64_t{0},
      [](std::int64_t sum, const TensorDecl& tensor) { return sum + tensor.bytes(); });
  const std::int64_t shards =
      std::clamp<std::int64_t>(num_shards, 1, std::max<std::int64_t>(1, std::ssize(tensors)));
  CheckpointWriter writer(dir);
  JsonObject weight_map;
  std::size_t next = 0;
  std::int64_t placed = 0;
  for (std::int64_t shard = 0; shard < shards; ++shard) {
    const std::string file =
        shards == 1 ? "model.safetensors"
                    : fmt::format("model-{:05}-of-{:06}.safetensors", shard + 1, shards);
    std::vector<TensorDecl> part;
    // Every shard gets a tensor and leaves one for each that follows; the last takes the rest.
    const auto leaves_enough = [&] {
      return std::cmp_greater(tensors.size() - next, shards - shard - 1);
    };
    while (next < tensors.size() && leaves_enough() &&
           (part.empty() || shard == shards - 1 || placed < total / shards * (shard + 1))) {
      writer.homes_.push_back({static_cast<std::size_t>(shard), part.size()});
      weight_map.add(tensors[next].name, quoted(file));
      placed += tensors[next].bytes();
      part.push_back(std::move(tensors[next++]));
    }
    ASSIGN_OR_RETURN(SafetensorsWriter opened,
                     SafetensorsWriter::create(dir / file, std::move(part), options));
    writer.shards_.push_back(std::move(opened));
  }
  if (shards > 1) {
    writer.index_json_ = fmt::format(R"({{"metadata": {{"total_size": {}}}, "weight_map": {}}})",
                                     total, std::move(weight_map).close());
  }
  return writer;
}

Status CheckpointWriter::append(std::size_t index, std::span<const std::byte> bytes) {
  CHECK(index < homes_.size(), "tensor {} of {}", index, homes_.size());
  return shards_[homes_[index].shard].append(homes_[index].index, bytes);
}

Status CheckpointWriter::finish() {
  for (SafetensorsWriter& shard : shards_) RETURN_IF_ERROR(shard.finish());
  if (index_json_.empty()) return {};
  return write_text_file(dir_ / "model.safetensors.index.json", index_json_);
}

}  // namespace stoker::storage
