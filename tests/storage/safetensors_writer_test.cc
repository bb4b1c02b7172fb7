#include "storage/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/file.h"
#include "storage/read_file.h"
#include "tests/support/temp_dir.h"

namespace stoker::storage {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> filled(std::int64_t count, int value) {
  return std::vector<std::byte>(static_cast<std::size_t>(count), static_cast<std::byte>(value));
}

SafetensorsHeader header_of(const std::filesystem::path& path) {
  const std::string file = *read_small_file(path, 1 << 20);
  Result<SafetensorsHeader> header =
      parse_safetensors(std::as_bytes(std::span(file)), std::ssize(file));
  CHECK(header.ok(), "{}", header.error().message());
  return std::move(header).value();
}

TEST(SafetensorsWriter, WritesAlignedTensorsFromPieces) {
  const test::TempDir dir;
  const auto path = dir.path() / "x.safetensors";
  auto writer = SafetensorsWriter::create(path,
                                          {{"bytes", StoredType::kU8, {3}},
                                           {"halves \"\\", StoredType::kBf16, {1, 5}},
                                           {"floats", StoredType::kF32, {2}}},
                                          {.data_align = 4096, .metadata = {{"k", "v\n"}}});
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  ASSERT_TRUE(writer->append(0, filled(1, 1)).ok());
  ASSERT_TRUE(writer->append(2, filled(8, 2)).ok());
  ASSERT_TRUE(writer->append(1, filled(10, 3)).ok());
  ASSERT_TRUE(writer->append(0, filled(2, 4)).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_TRUE(writer->finish().ok());

  const SafetensorsHeader header = header_of(path);
  EXPECT_EQ(header.data_begin, 4096);
  EXPECT_EQ(header.metadata.at("k"), "v\n");
  ASSERT_EQ(header.entries.size(), 3u);
  EXPECT_EQ(header.entries[0].name, "floats");
  EXPECT_EQ(header.entries[1].name, "halves \"\\");
  EXPECT_EQ(header.entries[2].name, "bytes");
  const std::string data = read_small_file(path, 1 << 20)->substr(4096);
  EXPECT_EQ(data, std::string(8, 2) + std::string(10, 3) + "\1\4\4");
}

TEST(SafetensorsWriter, AnUnfinishedFileLeavesNothingAndKeepsTheOld) {
  const test::TempDir dir;
  const auto path = dir.path() / "x.safetensors";
  ASSERT_TRUE(write_text_file(path, "old").ok());
  {
    auto writer = SafetensorsWriter::create(path, {{"a", StoredType::kU8, {3}}});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->append(0, filled(2, 1)).ok());
  }
  EXPECT_EQ(*read_small_file(path, 10), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(SafetensorsWriter, ErrorsNameTheFile) {
  const auto writer = SafetensorsWriter::create("/nonexistent/x", {});
  EXPECT_THAT(writer.error().message(), HasSubstr("/nonexistent/x"));
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const test::TempDir dir;
  std::filesystem::create_symlink("/dev/full", dir.path() / "y.partial");
  EXPECT_THAT(write_text_file(dir.path() / "y", "text").error().message(),
              HasSubstr("y: cannot write: No space left on device"));
}

TEST(SafetensorsWriterDeathTest, BytesMustAddUp) {
  const test::TempDir dir;
  auto writer = SafetensorsWriter::create(dir.path() / "x", {{"a", StoredType::kU8, {3}}});
  ASSERT_TRUE(writer.ok());
  EXPECT_DEATH((void)writer->append(0, filled(4, 1)), "a: 4 bytes appended to 0 of 3");
  EXPECT_DEATH((void)writer->finish(), "a: 0 of 3 bytes");
}

TEST(CheckpointWriter, CutsIntoShardsWithAnIndex) {
  const test::TempDir dir;
  std::vector<TensorDecl> decls;
  for (int i = 0; i < 7; ++i) decls.push_back({fmt::format("t{}", i), StoredType::kU8, {10}});
  auto writer = CheckpointWriter::create(dir.path() / "new", decls, 3);
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(writer->append(i, filled(10, i)).ok());
  ASSERT_TRUE(writer->finish().ok());
  const auto text = read_small_file(dir.path() / "new/model.safetensors.index.json", 1 << 20);
  const auto index = parse_safetensors_index(*text);
  ASSERT_TRUE(index.ok()) << index.error().message();
  ASSERT_EQ(index->size(), 7u);
  EXPECT_EQ((*index)[0].file, "model-00001-of-000003.safetensors");
  EXPECT_EQ((*index)[6].file, "model-00003-of-000003.safetensors");
  std::size_t stored = 0;
  for (int shard = 1; shard <= 3; ++shard) {
    const auto file = fmt::format("new/model-{:05}-of-000003.safetensors", shard);
    stored += header_of(dir.path() / file).entries.size();
  }
  EXPECT_EQ(stored, 7u);
}

TEST(CheckpointWriter, NeverMoreShardsThanTensors) {
  const test::TempDir dir;
  auto writer = CheckpointWriter::create(
      dir.path(), {{"a", StoredType::kU8, {1000}}, {"b", StoredType::kU8, {1}}}, 5);
  ASSERT_TRUE(writer.ok()) << writer.error().message();
  ASSERT_TRUE(writer->append(0, filled(1000, 1)).ok());
  ASSERT_TRUE(writer->append(1, filled(1, 1)).ok());
  ASSERT_TRUE(writer->finish().ok());
  EXPECT_TRUE(std::filesystem::exists(dir.path() / "model-00002-of-000002.safetensors"));
}

}  // namespace
}  // namespace stoker::storage
