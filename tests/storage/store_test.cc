#include "storage/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "quant/tile16.h"
#include "storage/checksum.h"
#include "storage/data_file.h"
#include "storage/open_model.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/packed_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using test::PackedModel;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr QuantSpec kInt8{QuantFormat::kInt8, 128};
constexpr QuantSpec kInt4{QuantFormat::kInt4, 64};

std::string_view bytes_of(const QuantView& view) {
  return {reinterpret_cast<const char*>(view.payload),
          static_cast<std::size_t>(view.rows * view.cols * view.spec.element_bits() / 8)};
}

struct PackCase {
  const char* name;
  const char* dtype;
  std::optional<QuantSpec> experts;
  int num_files;
  int drafts;
};
void PrintTo(const PackCase& pack, std::ostream* out) { *out << pack.name; }

class PackedStore : public ::testing::TestWithParam<PackCase> {
 protected:
  static PackedModel pack() {
    test::TinyModelOptions model;
    model.config = test::with_field(test::tiny_config("deepseek_v32", GetParam().dtype),
                                    "num_nextn_predict_layers", std::to_string(GetParam().drafts));
    model.shards = 2;
    return PackedModel(model, {.experts = GetParam().experts, .num_files = GetParam().num_files});
  }
};

// Blocks are the ones that the checkpoint's experts give in the same format, byte for byte.
TEST_P(PackedStore, HoldsTheSameExperts) {
  const PackedModel model = pack();
  const auto store = model.store();
  const auto checkpoint = model.checkpoint();
  EXPECT_THAT(store->notices(), IsEmpty());
  ASSERT_EQ(store->expert_layers(), checkpoint->expert_layers());
  for (const int layer : store->expert_layers()) {
    const QuantSpec spec = GetParam().experts.value_or(checkpoint->expert_spec(layer));
    ASSERT_EQ(store->expert_spec(layer), spec);
    const quant::ExpertBlocks blocks(model.config().hidden_size,
                                     model.config().moe_intermediate_size, spec);
    ASSERT_EQ(store->expert_bytes(layer), blocks.expert_bytes());
    test::AlignedMemory slot(store->expert_bytes(layer)), expected(store->expert_bytes(layer));
    for (int expert = 0; expert < model.config().n_routed_experts; ++expert) {
      std::array<HostWeight, 3> weights;
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const char* const projection = std::array{"gate_proj", "up_proj", "down_proj"}[i];
        const std::string name = expert_tensor_name({layer, expert}, projection);
        const StoredTensor* tensor = checkpoint->find(name);
        weights[i] = *checkpoint->read(name, tensor->rows, tensor->cols);
      }
      for (int block = 0; block < blocks.num_blocks(); ++block) {
        blocks.write(block, weights[0].view, weights[1].view, weights[2].view,
                     expected.data() + blocks.block(block).offset);
      }
      const Status read = store->read({layer, expert}, slot.data());
      ASSERT_TRUE(read.ok()) << read.error().message();
      EXPECT_EQ(std::memcmp(slot.data(), expected.data(),
                            static_cast<std::size_t>(blocks.expert_bytes())),
                0)
          << layer << " " << expert;
    }
  }
}

TEST_P(PackedStore, HoldsTheOtherTensorsUnchanged) {
  const PackedModel model = pack();
  const auto store = model.store();
  const auto checkpoint = model.checkpoint();
  EXPECT_EQ(store->dense_bytes(), checkpoint->dense_bytes());
  int compared = 0;
  for (const TensorSpec& spec : tensor_table(model.config())) {
    EXPECT_EQ(store->has(spec.name), checkpoint->has(spec.name) && spec.expert < 0) << spec.name;
    if (!store->has(spec.name)) continue;
    const auto packed = store->read(spec.name, spec.rows, spec.cols);
    const auto published = checkpoint->read(spec.name, spec.rows, spec.cols);
    ASSERT_TRUE(packed.ok()) << packed.error().message();
    EXPECT_EQ(packed->view.spec, published->view.spec);
    EXPECT_EQ(bytes_of(packed->view), bytes_of(published->view)) << spec.name;
    if (packed->view.spec.has_scales()) {
      EXPECT_EQ(quant::scale_at(packed->view, spec.rows - 1, spec.cols - 1),
                quant::scale_at(published->view, spec.rows - 1, spec.cols - 1));
    }
    ++compared;
  }
  EXPECT_GT(compared, 40);
}

// What a reader is told about a block is where the block lies.
TEST_P(PackedStore, ExtentsLeadToBlocks) {
  const PackedModel model = pack();
  const auto store = model.store();
  EXPECT_EQ(std::ssize(store->extent_files()), GetParam().num_files);
  std::map<std::pair<int, int>, int> share;  // experts of a layer in a file
  for (const int layer : store->expert_layers()) {
    test::AlignedMemory slot(store->expert_bytes(layer)), block_bytes(store->expert_bytes(layer));
    for (int expert = 0; expert < model.config().n_routed_experts; ++expert) {
      const ExpertId id{layer, expert};
      ASSERT_TRUE(store->read(id, slot.data()).ok());
      EXPECT_EQ(store->num_replicas(id), 1);
      for (int block = 0; block < store->num_blocks(layer); ++block) {
        std::array<Extent, kMaxExtents> extents;
        EXPECT_EQ(store->extents(id, block, 1, extents), 0);
        ASSERT_EQ(store->extents(id, block, 0, extents), 1);
        const Extent& at = extents[0];
        EXPECT_EQ(at.offset % kExtentAlign, 0);
        EXPECT_EQ(at.bytes, store->block_bytes(layer, block));
        EXPECT_EQ(at.bytes % kExtentAlign, 0);
        EXPECT_EQ(at.dst_offset, 0);
        if (block == 0) ++share[{layer, at.file}];
        const auto file =
            ReadFile::open(store->extent_files()[static_cast<std::size_t>(at.file)].path);
        ASSERT_TRUE(file.ok());
        std::span<std::byte> bytes(block_bytes.data(), static_cast<std::size_t>(at.bytes));
        ASSERT_TRUE(file->read(at.offset, bytes).ok());
        EXPECT_EQ(std::memcmp(bytes.data(), slot.data() + store->block_offset(layer, block),
                              bytes.size()),
                  0);
        EXPECT_TRUE(store->land(id, block, 0, bytes.data()).ok());
        bytes[bytes.size() / 2] ^= std::byte{4};
        const Status bad = store->land(id, block, 0, bytes.data());
        ASSERT_FALSE(bad.ok());
        EXPECT_THAT(
            bad.error().message(),
            AllOf(HasSubstr(fmt::format("block {} of expert {} of layer {}", block, expert, layer)),
                  HasSubstr(file->path().string()),
                  HasSubstr(fmt::format("at offset {}", at.offset))));
      }
    }
  }
  for (const auto& [where, count] : share) {
    EXPECT_EQ(count, model.config().n_routed_experts / GetParam().num_files);
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, PackedStore,
                         ::testing::Values(PackCase{"fp8", "fp8", std::nullopt, 1, 0},
                                           PackCase{"fp8_drafts", "fp8", std::nullopt, 3, 1},
                                           PackCase{"bf16", "bf16", std::nullopt, 2, 0},
                                           PackCase{"f32", "f32", std::nullopt, 1, 0},
                                           PackCase{"fp8_int8", "fp8", kInt8, 4, 1},
                                           PackCase{"bf16_int4", "bf16", kInt4, 1, 0},
                                           PackCase{"f16_int4", "f16", kInt4, 2, 0}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Store, CountsItsBytes) {
  const PackedModel model({}, {.experts = kInt4});
  const auto store = model.store();
  const auto checkpoint = model.checkpoint();
  CategoryBytes expected = checkpoint->category_bytes();
  expected[static_cast<std::size_t>(TensorCategory::kRoutedExperts)] =
      3 * 12 * store->expert_bytes(1);
  EXPECT_EQ(store->category_bytes(), expected);
}

TEST(Store, OpenModelTellsTheForms) {
  const PackedModel model;
  const auto store = open_model(model.dir(), model.config());
  ASSERT_TRUE(store.ok()) << store.error().message();
  EXPECT_NE(dynamic_cast<Store*>(store->get()), nullptr);
  const auto checkpoint = open_model(model.source_dir(), model.config());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_NE(dynamic_cast<Checkpoint*>(checkpoint->get()), nullptr);
}

// Expert files in other directories: found there, mirrored where two have one, counted once.
TEST(Store, ExpertFilesMayLieElsewhere) {
  const PackedModel model({}, {.num_files = 2});
  const fs::path a = model.dir("a"), b = model.dir("b");
  fs::create_directory(a);
  fs::create_directory(b);
  const std::string first = expert_file_name(0), second = expert_file_name(1);
  fs::copy(model.dir() / first, a / first);
  fs::copy(model.dir() / second, a / second);
  fs::copy(model.dir() / second, b / second);
  fs::remove(model.dir() / first);
  fs::remove(model.dir() / second);
  EXPECT_THAT(test::open_message(model.dir(), model.config()),
              AllOf(HasSubstr(first + " is not in " + model.dir().string()), HasSubstr("--store")));
  EXPECT_THAT(test::open_message(model.dir(), model.config(), std::array{b}),
              HasSubstr(first + " is not in " + b.string()));
  EXPECT_THAT(test::open_message(model.dir(), model.config(), std::array{a, model.dir("c")}),
              HasSubstr("c: is not a directory"));
  const auto store = model.store(std::array{a, b, a / "." / ".." / "a"});
  EXPECT_THAT(store->notices(), IsEmpty());
  ASSERT_EQ(store->extent_files().size(), 3u);
  int mirrored = 0;
  for (int expert = 0; expert < 12; ++expert) {
    mirrored += store->num_replicas({1, expert}) == 2 ? 1 : 0;
  }
  EXPECT_EQ(mirrored, 6);
}

// A hard link is the same file: no mirror.
TEST(Store, AFileWithTwoNamesCountsOnce) {
  const PackedModel model;
  const fs::path a = model.dir("a");
  fs::create_directory(a);
  fs::create_hard_link(model.dir() / expert_file_name(0), a / expert_file_name(0));
  EXPECT_EQ(model.store(std::array{model.dir(), a})->num_replicas({1, 0}), 1);
}

TEST(Store, ABadBlockComesFromTheMirror) {
  const PackedModel model;
  const fs::path a = model.dir("a");
  fs::create_directory(a);
  fs::copy(model.dir() / expert_file_name(0), a / expert_file_name(0));
  const auto store = model.store(std::array{model.dir(), a});
  test::AlignedMemory good(store->expert_bytes(1)), slot(store->expert_bytes(1));
  ASSERT_TRUE(store->read({1, 5}, good.data()).ok());
  std::array<Extent, kMaxExtents> extents;
  ASSERT_EQ(store->extents({1, 5}, 1, 0, extents), 1);
  test::flip(model.dir() / expert_file_name(0), extents[0].offset + 100);
  ASSERT_TRUE(store->read({1, 5}, slot.data()).ok());
  EXPECT_EQ(std::memcmp(slot.data(), good.data(), good.bytes().size()), 0);
  // The same place in both: nothing left to take it from.
  test::flip(a / expert_file_name(0), extents[0].offset + 100);
  EXPECT_THAT(store->read({1, 5}, slot.data()).error().message(),
              AllOf(HasSubstr("block 1 of expert 5 of layer 1"), HasSubstr(a.string())));
}

TEST(Store, ADamagedMirrorIsLeftOut) {
  const PackedModel model;
  const fs::path a = model.dir("a");
  fs::create_directory(a);
  fs::copy(model.dir() / expert_file_name(0), a / expert_file_name(0));
  fs::resize_file(a / expert_file_name(0), 8192);
  const auto store = model.store(std::array{a, model.dir()});
  EXPECT_EQ(store->num_replicas({1, 0}), 1);
  EXPECT_EQ(store->extent_files()[0].path, model.dir() / expert_file_name(0));
  EXPECT_THAT(store->notices(),
              ::testing::ElementsAre(AllOf(HasSubstr("left out"), HasSubstr(a.string()),
                                           HasSubstr("has 8192 bytes"))));
}

// Dense weights are held against their checksums as well.
TEST(Store, ABadDenseTensorIsAnError) {
  const PackedModel model;
  const std::string name = "model.layers.2.self_attn.o_proj.weight";
  const auto good = model.store();
  const StoredTensor& tensor = *good->find(name);
  test::flip(model.dir() / kDenseFile, tensor.offset + 7);
  const auto read = model.store()->read(name, tensor.rows, tensor.cols);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(read.error().message(),
              AllOf(HasSubstr("tensor " + name), HasSubstr(kDenseFile), HasSubstr("expected")));
}

// Replaced while it is open: what was opened stays what it was.
TEST(Store, SurvivesBeingReplaced) {
  const PackedModel model;
  test::TinyModelOptions other_options;
  other_options.seed = 2;
  const PackedModel other(other_options);
  const auto store = model.store();
  test::AlignedMemory before(store->expert_bytes(1)), after(store->expert_bytes(1));
  ASSERT_TRUE(store->read({1, 0}, before.data()).ok());
  fs::rename(other.dir() / expert_file_name(0), model.dir() / expert_file_name(0));
  ASSERT_TRUE(store->read({1, 0}, after.data()).ok());
  EXPECT_EQ(std::memcmp(before.data(), after.data(), before.bytes().size()), 0);
  // Opened again, its parts no longer fit together.
  EXPECT_THAT(test::open_message(model.dir(), model.config()), HasSubstr("checksums has hash"));
}

// Overwritten in place: found when a block lands.
TEST(Store, FindsOutWhenItIsOverwritten) {
  const PackedModel model;
  test::TinyModelOptions other_options;
  other_options.seed = 2;
  const PackedModel other(other_options);
  const auto store = model.store();
  fs::copy(other.dir() / expert_file_name(0), model.dir() / expert_file_name(0),
           fs::copy_options::overwrite_existing);
  test::AlignedMemory slot(store->expert_bytes(1));
  EXPECT_THAT(store->read({1, 0}, slot.data()).error().message(), HasSubstr("expected"));
}

struct Damage {
  const char* what;
  std::function<void(const fs::path&)> damage;
  std::vector<std::string> messages;
};
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.what; }

class StoreRefuses : public ::testing::TestWithParam<Damage> {};

TEST_P(StoreRefuses, AndSaysWhy) {
  const PackedModel model({}, {.num_files = 2});
  GetParam().damage(model.dir());
  const std::string message = test::open_message(model.dir(), model.config());
  for (const std::string& part : GetParam().messages) EXPECT_THAT(message, HasSubstr(part));
  EXPECT_THAT(message, HasSubstr(model.dir().string()));
}

INSTANTIATE_TEST_SUITE_P(
    Stores, StoreRefuses,
    ::testing::Values(
        Damage{"manifest_flipped",
               [](const fs::path& dir) { test::flip(dir / kManifestFile, 200); },
               {"manifest.json"}},
        Damage{"no_manifest",
               [](const fs::path& dir) { fs::remove(dir / kManifestFile); },
               {"manifest.json: cannot open"}},
        Damage{"config_changed",
               [](const fs::path& dir) { test::flip(dir / "config.json", 20); },
               {"config.json: is not the one that the model was packed with"}},
        Damage{"no_dense",
               [](const fs::path& dir) { fs::remove(dir / kDenseFile); },
               {"dense.safetensors: cannot open"}},
        Damage{"dense_header",
               [](const fs::path& dir) { test::flip(dir / kDenseFile, 100); },
               {"dense.safetensors: its header has hash", "the manifest says", "stoker verify"}},
        Damage{"dense_length",
               [](const fs::path& dir) { test::flip(dir / kDenseFile, 4, 0x80); },
               {"dense.safetensors"}},
        Damage{"expert_truncated",
               [](const fs::path& dir) { fs::resize_file(dir / expert_file_name(1), 40960); },
               {"experts-001.safetensors: has 40960 bytes, the manifest says"}},
        Damage{"expert_header",
               [](const fs::path& dir) { test::flip(dir / expert_file_name(1), 50); },
               {"experts-001.safetensors: its header has hash"}},
        Damage{"expert_padding_of_header",
               [](const fs::path& dir) { test::flip(dir / expert_file_name(1), 4095, 2); },
               {"experts-001.safetensors: its header has hash"}},
        Damage{"checksum_table",
               [](const fs::path& dir) {
                 const fs::path file = dir / expert_file_name(0);
                 test::flip(file, static_cast<std::int64_t>(fs::file_size(file)) - 4096);
               },
               {"experts-000.safetensors: its table of checksums has hash"}},
        Damage{"files_swapped",
               [](const fs::path& dir) {
                 fs::rename(dir / expert_file_name(0), dir / "x");
                 fs::rename(dir / expert_file_name(1), dir / expert_file_name(0));
               },
               {"experts-000.safetensors: its header has hash"}},
        Damage{"layer_not_listed",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) { m.layers.pop_back(); });
               },
               {"lists no experts of layer 3"}},
        Damage{"layer_too_many",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) {
                   m.layers.push_back(m.layers.back());
                   m.layers.back().layer = 4;
                 });
               },
               {"lists 12 experts of layer 4, config.json implies 0"}},
        Damage{"experts_too_few",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) { m.layers[0].num_experts = 11; });
               },
               {"lists 11 experts of layer 1, config.json implies 12"}},
        Damage{"format",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) { m.layers[0].spec = kInt4; });
               },
               {"has 24576 bytes in 2 blocks", "int4_g64 imply 12288 in 2"}},
        Damage{"expert_file_not_listed",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) { m.files.pop_back(); });
               },
               {"is in none of the files that it lists"}},
        Damage{"dense_not_listed",
               [](const fs::path& dir) {
                 test::edit_manifest(dir, [](Manifest& m) {
                   std::erase_if(m.files, [](const auto& f) { return f.name == kDenseFile; });
                 });
               },
               {"does not list dense.safetensors"}}),
    [](const auto& info) { return std::string(info.param.what); });

}  // namespace
}  // namespace stoker::storage
