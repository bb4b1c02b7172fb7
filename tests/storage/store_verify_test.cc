#include "storage/store_verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "storage/data_file.h"
#include "storage/write_file.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/packed_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using test::PackedModel;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

VerifyReport verified(const fs::path& dir, std::span<const fs::path> expert_dirs = {}) {
  auto report = verify_store(dir, expert_dirs);
  CHECK(report.ok(), "{}", report.error().message());
  return std::move(report).value();
}

PackedModel small_store() {
  test::TinyModelOptions model;
  model.config =
      test::with_field(test::tiny_config("deepseek_v32", "fp8"), "num_nextn_predict_layers", "1");
  return PackedModel(model, {.num_files = 2});
}

TEST(VerifyStore, AGoodStoreIsReadWhole) {
  const PackedModel model = small_store();
  std::int64_t bytes = 0, last = 0, total = 0;
  for (const auto& entry : fs::directory_iterator(model.dir())) {
    bytes += static_cast<std::int64_t>(entry.file_size());
  }
  const auto report = verify_store(model.dir(), {}, [&](std::int64_t done, std::int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_THAT(report->bad, IsEmpty());
  EXPECT_THAT(report->unknown, IsEmpty());
  EXPECT_EQ(report->num_files, 6);  // config, generation config, dense, experts, manifest
  // Eight bytes of each data file are read twice: the length of its header.
  EXPECT_EQ(report->bytes, bytes + 3 * 8);
  EXPECT_EQ(last, total);
  // 4 MoE layers of 12 experts in 2 blocks, and the dense tensors.
  EXPECT_EQ(report->num_checksums, 4 * 12 * 2 + std::ssize(model.store()->names()));
}

// A bit that changed, wherever it is: found, in the right file, at the right place.
TEST(VerifyStore, EveryBitIsCovered) {
  const PackedModel model = small_store();
  std::mt19937 random(1);
  for (const auto& [name, content] : test::contents(model.dir())) {
    const fs::path file = model.dir() / name;
    for (int i = 0; i < 40; ++i) {
      const auto offset = static_cast<std::int64_t>(random() % content.size());
      const auto mask = static_cast<unsigned char>(1u << random() % 8);
      test::flip(file, offset, mask);
      const VerifyReport report = verified(model.dir());
      // Without config.json nobody knows how experts are cut into blocks: more is bad then.
      ASSERT_GE(report.bad.size(), 1u) << name << " " << offset;
      if (name != "config.json") {
        EXPECT_EQ(report.bad.size(), 1u) << name << " " << offset;
      }
      EXPECT_EQ(report.bad[0].file, file);
      if (report.bad[0].bytes != 0) {
        EXPECT_LE(report.bad[0].offset, offset);
        EXPECT_GT(report.bad[0].offset + report.bad[0].bytes, offset);
      }
      test::flip(file, offset, mask);
    }
  }
  EXPECT_THAT(verified(model.dir()).bad, IsEmpty());
}

TEST(VerifyStore, ListsEverythingThatIsBad) {
  const PackedModel model = small_store();
  const auto store = model.store();
  std::array<Extent, kMaxExtents> block;
  ASSERT_EQ(store->extents({2, 3}, 1, 0, block), 1);
  const fs::path expert_file = store->extent_files()[static_cast<std::size_t>(block[0].file)].path;
  test::flip(expert_file, block[0].offset);
  test::flip(model.dir() / "generation_config.json", 1);
  fs::remove(model.dir() / kDenseFile);
  CHECK(write_text_file(model.dir() / "notes.txt", "x").ok());
  const VerifyReport report = verified(model.dir());
  ASSERT_EQ(report.bad.size(), 3u);
  EXPECT_EQ(report.bad[0].file, model.dir() / kDenseFile);
  EXPECT_THAT(report.bad[0].problem, HasSubstr("cannot open"));
  EXPECT_EQ(report.bad[1].file, expert_file);
  EXPECT_EQ(report.bad[1].offset, block[0].offset);
  EXPECT_EQ(report.bad[1].bytes, block[0].bytes);
  EXPECT_THAT(report.bad[1].problem,
              AllOf(HasSubstr("model.layers.2.mlp.experts.3, block 1: has checksum"),
                    HasSubstr("expected")));
  EXPECT_THAT(report.bad[2].problem, AllOf(HasSubstr("has hash"), HasSubstr("expected")));
  EXPECT_THAT(report.unknown, ::testing::ElementsAre(model.dir() / "notes.txt"));
}

TEST(VerifyStore, TellsMissingAndShortFiles) {
  const PackedModel model = small_store();
  fs::remove(model.dir() / expert_file_name(0));
  fs::resize_file(model.dir() / expert_file_name(1), 100);
  const VerifyReport report = verified(model.dir());
  ASSERT_EQ(report.bad.size(), 2u);
  EXPECT_THAT(report.bad[0].problem, HasSubstr("cannot open"));
  EXPECT_THAT(report.bad[1].problem, HasSubstr("has 100 bytes, the manifest says"));
}

// Every copy of a mirrored file is read.
TEST(VerifyStore, ChecksMirrors) {
  const PackedModel model = small_store();
  const fs::path mirror = model.dir("mirror");
  fs::create_directory(mirror);
  fs::copy(model.dir() / expert_file_name(1), mirror / expert_file_name(1));
  test::flip(mirror / expert_file_name(1),
             static_cast<std::int64_t>(fs::file_size(mirror / expert_file_name(1))) / 2);
  EXPECT_THAT(verified(model.dir()).bad, IsEmpty());
  const VerifyReport report = verified(model.dir(), std::array{model.dir(), mirror});
  EXPECT_EQ(report.num_files, 7);
  ASSERT_EQ(report.bad.size(), 1u);
  EXPECT_EQ(report.bad[0].file, mirror / expert_file_name(1));
}

TEST(VerifyStore, AManifestOrConfigThatIsBad) {
  const PackedModel model = small_store();
  test::flip(model.dir() / "config.json", 0);  // no longer JSON
  VerifyReport report = verified(model.dir());
  ASSERT_EQ(report.bad.size(), 3u);
  EXPECT_THAT(report.bad[0].problem, HasSubstr("has hash"));
  EXPECT_THAT(report.bad[1].problem, HasSubstr("config.json does not say how it is cut"));
  test::flip(model.dir() / kManifestFile, 100);
  report = verified(model.dir());
  ASSERT_EQ(report.bad.size(), 1u);
  EXPECT_EQ(report.bad[0].file, model.dir() / kManifestFile);
  EXPECT_THAT(report.bad[0].problem, HasSubstr("without it nothing else can be checked"));
  fs::remove(model.dir() / kManifestFile);
  EXPECT_FALSE(verify_store(model.dir(), {}).ok());
}

}  // namespace
}  // namespace stoker::storage
