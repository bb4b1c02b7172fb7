#include "storage/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include "core/base/file.h"
#include "quant/fp8.h"
#include "storage/safetensors_writer.h"
#include "storage/write_file.h"
#include "tests/support/tiny_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::size_t kMaxFile = 64 << 20;
constexpr const char* kIndex = "model.safetensors.index.json";
// A tensor of the tiny model to do things to, and its scale.
const std::string kOProj = "model.layers.2.self_attn.o_proj.weight";
const std::string kOProjScale = kOProj + "_scale_inv";

struct Blob {
  StoredType type;
  std::vector<std::int64_t> shape;
  std::string bytes;
};
using Blobs = std::map<std::string, Blob>;

// Rewrites a one-file checkpoint after `edit`.
void edit(const fs::path& dir, const std::function<void(Blobs&)>& edit, int shards = 1) {
  const std::string file = *read_small_file(dir / "model.safetensors", kMaxFile);
  const auto header = parse_safetensors(std::as_bytes(std::span(file)), std::ssize(file));
  CHECK(header.ok(), "{}", header.error().message());
  Blobs blobs;
  for (const SafetensorsEntry& entry : header->entries) {
    blobs[entry.name] = {entry.type, entry.shape, file.substr(entry.offset, entry.bytes)};
  }
  edit(blobs);
  std::vector<TensorDecl> decls;
  for (const auto& [name, blob] : blobs) decls.push_back({name, blob.type, blob.shape});
  auto writer = CheckpointWriter::create(dir, decls, shards);
  CHECK(writer.ok(), "{}", writer.error().message());
  std::size_t next = 0;
  for (const auto& [name, blob] : blobs) {
    CHECK(writer->append(next++, std::as_bytes(std::span(blob.bytes))).ok());
  }
  CHECK(writer->finish().ok());
  if (shards > 1) fs::remove(dir / "model.safetensors");
}

void resize(Blob& blob, StoredType type, std::vector<std::int64_t> shape) {
  blob.bytes.assign(TensorDecl{"", type, shape}.bytes(), '\0');
  blob.type = type;
  blob.shape = std::move(shape);
}

std::string open_message(const fs::path& dir, const ModelConfig& config) {
  const auto opened = Checkpoint::open(dir, config);
  return opened.ok() ? "" : opened.error().message();
}
std::string open_message(const test::TinyModel& model) {
  return open_message(model.dir(), model.config());
}

std::unique_ptr<Checkpoint> opened(const fs::path& dir, const ModelConfig& config) {
  auto checkpoint = Checkpoint::open(dir, config);
  CHECK(checkpoint.ok(), "{}", checkpoint.error().message());
  return std::move(checkpoint).value();
}

float value_at(const QuantView& view, std::int64_t row, std::int64_t col) {
  const std::int64_t i = row * view.cols + col;
  switch (view.spec.format) {
    case QuantFormat::kF32:
      return reinterpret_cast<const float*>(view.payload)[i];
    case QuantFormat::kF16:
      return to_f32(reinterpret_cast<const f16*>(view.payload)[i]);
    case QuantFormat::kBf16:
      return to_f32(reinterpret_cast<const bf16*>(view.payload)[i]);
    case QuantFormat::kF8E4m3B128:
      break;
    case QuantFormat::kInt8:
    case QuantFormat::kInt4:
      ADD_FAILURE() << "no stored type means " << quant_format_name(view.spec.format);
  }
  const std::int64_t scale = row / 128 * ((view.cols + 127) / 128) + col / 128;
  return quant::fp8_to_f32(std::to_integer<std::uint8_t>(view.payload[i])) *
         quant::decode_scale(view.spec.format, view.scales, scale);
}

class TinyCheckpoint : public ::testing::TestWithParam<std::tuple<const char*, const char*, int>> {
};

// Reads back what was drawn, within the rounding of the dtype, for each dtype and number of shards.
TEST_P(TinyCheckpoint, ReadsBackWhatWasWritten) {
  const auto& [type, dtype, shards] = GetParam();
  test::TinyModelOptions options;
  options.config = test::tiny_config(type, dtype);
  options.shards = shards;
  options.power_of_two_scales = shards == 1;
  const test::TinyModel model(options);
  const auto checkpoint = opened(model.dir(), model.config());
  EXPECT_THAT(checkpoint->notices(), IsEmpty());
  EXPECT_EQ(static_cast<int>(checkpoint->files().size()), shards);
  EXPECT_EQ(checkpoint->dense_bytes(), model.config().dense_bytes());
  CategoryBytes implied{};
  for (const TensorSpec& spec : tensor_table(model.config())) {
    implied[static_cast<std::size_t>(spec.category)] += spec.stored_bytes();
    const auto weight = checkpoint->read(spec.name, spec.rows, spec.cols);
    ASSERT_TRUE(weight.ok()) << weight.error().message();
    EXPECT_EQ(weight->view.spec.format, spec.format) << spec.name;
    const std::vector<float> drawn = test::tiny_tensor(spec, options);
    float largest = 0.0f, worst = 0.0f;
    for (std::int64_t i = 0; i < spec.elements(); ++i) {
      const float got = value_at(weight->view, i / spec.cols, i % spec.cols);
      largest = std::max(largest, std::fabs(drawn[i]));
      worst = std::max(worst, std::fabs(got - drawn[i]));
    }
    const double tolerance = spec.format == QuantFormat::kF32          ? 0.0
                             : spec.format == QuantFormat::kF16        ? 0x1p-11
                             : spec.format == QuantFormat::kF8E4m3B128 ? 0x1p-4
                                                                       : 0x1p-8;
    EXPECT_LE(worst, tolerance * largest) << spec.name;
    EXPECT_GT(largest, 0.0f) << spec.name;
  }
  EXPECT_EQ(checkpoint->category_bytes(), implied);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, TinyCheckpoint,
    ::testing::Values(std::tuple{"deepseek_v32", "fp8", 1}, std::tuple{"deepseek_v32", "fp8", 3},
                      std::tuple{"deepseek_v32", "bf16", 2}, std::tuple{"deepseek_v32", "f16", 1},
                      std::tuple{"deepseek_v32", "f32", 1}, std::tuple{"deepseek_v3", "fp8", 2},
                      std::tuple{"deepseek_v3", "bf16", 1}),
    [](const auto& info) {
      return fmt::format("{}_{}_{}", std::get<0>(info.param), std::get<1>(info.param),
                         std::get<2>(info.param));
    });

TEST(Checkpoint, ExpertsComeInBlockForm) {
  for (const char* dtype : {"fp8", "bf16"}) {
    test::TinyModelOptions options;
    options.config = test::tiny_config("deepseek_v32", dtype);
    const test::TinyModel model(options);
    const auto checkpoint = opened(model.dir(), model.config());
    const std::int64_t hidden = 136, inter = 40;
    const quant::ExpertBlocks blocks(hidden, inter, checkpoint->expert_spec(2));
    ASSERT_EQ(checkpoint->expert_bytes(2), blocks.expert_bytes());
    ASSERT_EQ(checkpoint->num_blocks(2), blocks.num_blocks());
    std::vector<std::byte> got(blocks.expert_bytes()), want(blocks.expert_bytes());
    ASSERT_TRUE(checkpoint->read(ExpertId{2, 7}, got.data()).ok());
    const std::string prefix = "model.layers.2.mlp.experts.7.";
    const HostWeight gate = *checkpoint->read(prefix + "gate_proj.weight", inter, hidden);
    const HostWeight up = *checkpoint->read(prefix + "up_proj.weight", inter, hidden);
    const HostWeight down = *checkpoint->read(prefix + "down_proj.weight", hidden, inter);
    for (int i = 0; i < blocks.num_blocks(); ++i) {
      EXPECT_EQ(checkpoint->block_offset(2, i), blocks.block(i).offset);
      blocks.write(i, gate.view, up.view, down.view, want.data() + blocks.block(i).offset);
    }
    EXPECT_EQ(got, want) << dtype;
  }
}

TEST(Checkpoint, TheSameSeedGivesTheSameBytes) {
  const test::TinyModel a, b;
  const auto bytes = [](const test::TinyModel& model) {
    return *read_small_file(model.dir() / "model.safetensors", kMaxFile);
  };
  EXPECT_EQ(bytes(a), bytes(b));
  test::TinyModelOptions other;
  other.seed = 2;
  EXPECT_NE(bytes(a), bytes(test::TinyModel(other)));
}

TEST(Checkpoint, ReadChecksNameAndShape) {
  const test::TinyModel model;
  const auto checkpoint = opened(model.dir(), model.config());
  EXPECT_THAT(checkpoint->read("nothing", 1, 1).error().message(), HasSubstr("no tensor nothing"));
  EXPECT_THAT(checkpoint->read(kOProjScale, 2, 1).error().message(), HasSubstr("no tensor"));
  EXPECT_THAT(checkpoint->read(kOProj, 136, 61).error().message(),
              AllOf(HasSubstr("model.safetensors: tensor " + kOProj),
                    HasSubstr("is [136, 60], wanted [136, 61]")));
  EXPECT_TRUE(checkpoint->has(kOProj));
  const auto names = checkpoint->names();
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  EXPECT_EQ(std::ssize(names), checkpoint->num_tensors());
}

// Edits of a good checkpoint, and what opening it then says.
struct Damage {
  const char* what;
  std::function<void(Blobs&)> edit;
  std::vector<std::string> messages;
};
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.what; }

class CheckpointRefuses : public ::testing::TestWithParam<Damage> {};

TEST_P(CheckpointRefuses, AndSaysWhy) {
  const test::TinyModel model;
  edit(model.dir(), GetParam().edit);
  const std::string message = open_message(model);
  for (const std::string& part : GetParam().messages) EXPECT_THAT(message, HasSubstr(part));
  EXPECT_THAT(message, HasSubstr(model.dir().string()));
}

INSTANTIATE_TEST_SUITE_P(
    Tables, CheckpointRefuses,
    ::testing::Values(
        Damage{"missing",
               [](Blobs& b) { b.erase("model.norm.weight"); },
               {"tensor model.norm.weight [1, 136] is missing"}},
        Damage{"missing_expert",
               [](Blobs& b) { b.erase("model.layers.3.mlp.experts.11.up_proj.weight"); },
               {"tensor model.layers.3.mlp.experts.11.up_proj.weight [40, 136] is missing"}},
        Damage{"missing_scale",
               [](Blobs& b) { b.erase(kOProjScale); },
               {"tensor " + kOProj, "its scale " + kOProjScale + " [2, 1] is missing"}},
        Damage{"unknown",
               [](Blobs& b) { b["model.layers.1.extra"] = {StoredType::kU8, {1}, "x"}; },
               {"tensor model.layers.1.extra is no part of a deepseek_v32 with 4 layers"}},
        Damage{
            "layer_past_the_end",
            [](Blobs& b) { b["model.layers.4.input_layernorm.weight"] = b["model.norm.weight"]; },
            {"tensor model.layers.4.input_layernorm.weight is no part"}},
        Damage{"shape",
               [](Blobs& b) { resize(b["model.norm.weight"], StoredType::kF32, {137}); },
               {"tensor model.norm.weight is [137], config.json implies [136]"}},
        Damage{"transposed",
               [](Blobs& b) { b[kOProj].shape = {60, 136}; },
               {"tensor " + kOProj + " is [60, 136], config.json implies [136, 60]"}},
        Damage{"rank",
               [](Blobs& b) { b[kOProj].shape = {136, 60, 1}; },
               {"tensor " + kOProj + " is of rank 3"}},
        Damage{"flat_matrix",
               [](Blobs& b) { b[kOProj].shape = {136 * 60}; },
               {"tensor " + kOProj + " is [8160], config.json implies [136, 60]"}},
        Damage{"dtype",
               [](Blobs& b) { resize(b[kOProj], StoredType::kI8, {136, 60}); },
               {"tensor " + kOProj + " has dtype I8; supported here: F8_E4M3, BF16, F16, F32"}},
        Damage{"fp8_head",
               [](Blobs& b) { resize(b["lm_head.weight"], StoredType::kF8E4m3, {96, 136}); },
               {"tensor lm_head.weight has dtype F8_E4M3; supported here: BF16, F16, F32"}},
        Damage{"scale_dtype",
               [](Blobs& b) { resize(b[kOProjScale], StoredType::kBf16, {2, 1}); },
               {"tensor " + kOProjScale + " has dtype BF16, must be F32"}},
        Damage{"scale_shape",
               [](Blobs& b) { resize(b[kOProjScale], StoredType::kF32, {1, 1}); },
               {"tensor " + kOProjScale + " is [1, 1], must be [2, 1]"}},
        Damage{"scale_without_fp8",
               [](Blobs& b) { resize(b[kOProj], StoredType::kBf16, {136, 60}); },
               {"tensor " + kOProjScale, "but " + kOProj + " is stored in BF16"}},
        Damage{"mixed_experts",
               [](Blobs& b) {
                 const std::string name = "model.layers.2.mlp.experts.5.up_proj.weight";
                 resize(b[name], StoredType::kBf16, {40, 136});
                 b.erase(name + "_scale_inv");
               },
               {"tensor model.layers.2.mlp.experts.5.up_proj.weight is bf16",
                "other experts of its layer are fp8_e4m3_b128"}}),
    [](const auto& info) { return std::string(info.param.what); });

TEST(Checkpoint, ValuesThatAreNotFiniteAreNamedWhenRead) {
  const test::TinyModel model;
  const std::string expert = "model.layers.2.mlp.experts.5.up_proj.weight";
  edit(model.dir(), [&](Blobs& blobs) {
    blobs[kOProj].bytes[60 * 3 + 2] = '\xff';
    const float infinity = INFINITY;
    std::memcpy(blobs[expert + "_scale_inv"].bytes.data() + 4, &infinity, 4);
    blobs["lm_head.weight"].bytes.replace(0, 2, "\xc0\x7f");
    blobs["model.norm.weight"].bytes.replace(4, 4, std::string("\0\0\x80\xff", 4));
  });
  const auto checkpoint = opened(model.dir(), model.config());
  EXPECT_THAT(
      checkpoint->read(kOProj, 136, 60).error().message(),
      AllOf(HasSubstr("model.safetensors: tensor " + kOProj), HasSubstr("not finite at [3, 2]")));
  std::vector<std::byte> bytes(checkpoint->expert_bytes(2));
  EXPECT_THAT(
      checkpoint->read(ExpertId{2, 5}, bytes.data()).error().message(),
      HasSubstr("tensor " + expert + "_scale_inv holds a value that is not finite at [0, 1]"));
  EXPECT_TRUE(checkpoint->read(ExpertId{2, 4}, bytes.data()).ok());
  EXPECT_THAT(checkpoint->read("lm_head.weight", 96, 136).error().message(),
              HasSubstr("not finite at [0, 0]"));
  EXPECT_THAT(checkpoint->read("model.norm.weight", 1, 136).error().message(),
              HasSubstr("not finite at [0, 1]"));
}

TEST(Checkpoint, DirectoriesWithoutACheckpoint) {
  const test::TinyModel model;
  EXPECT_THAT(open_message("/nonexistent/dir", model.config()),
              HasSubstr("/nonexistent/dir: is not a directory"));
  const test::TempDir empty;
  EXPECT_THAT(open_message(empty.path(), model.config()),
              HasSubstr("has neither model.safetensors.index.json nor model.safetensors"));
}

TEST(Checkpoint, TruncatedAndForeignFiles) {
  const test::TinyModel model;
  const fs::path file = model.dir() / "model.safetensors";
  const auto size = fs::file_size(file);
  fs::resize_file(file, size - 1);
  EXPECT_THAT(open_message(model),
              AllOf(HasSubstr(file.string()), HasSubstr("truncated: tensor ")));
  fs::resize_file(file, 100);
  EXPECT_THAT(open_message(model), HasSubstr("truncated: the header ends at"));
  fs::resize_file(file, 3);
  EXPECT_THAT(open_message(model), HasSubstr("truncated: 3 bytes"));
  ASSERT_TRUE(write_text_file(file, "version https://git-lfs.github.com/spec/v1").ok());
  EXPECT_THAT(open_message(model), HasSubstr("this is no safetensors file"));
}

TEST(Checkpoint, AFileThatShrinksAfterOpeningIsAnError) {
  const test::TinyModel model;
  const auto checkpoint = opened(model.dir(), model.config());
  fs::resize_file(model.dir() / "model.safetensors", 5000);
  EXPECT_THAT(checkpoint->read(kOProj, 136, 60).error().message(),
              AllOf(HasSubstr("tensor " + kOProj), HasSubstr("model.safetensors: ends at byte")));
}

class ShardedCheckpoint : public ::testing::Test {
 protected:
  ShardedCheckpoint()
      : model_([] {
          test::TinyModelOptions options;
          options.shards = 3;
          return options;
        }()) {}
  fs::path shard(int number) const {
    return model_.dir() / fmt::format("model-{:05}-of-000003.safetensors", number);
  }
  void replace_in_index(const std::string& from, const std::string& to) {
    std::string text = *read_small_file(model_.dir() / kIndex, kMaxFile);
    const std::size_t at = text.find(from);
    CHECK(at != std::string::npos, "{}", from);
    ASSERT_TRUE(write_text_file(model_.dir() / kIndex, text.replace(at, from.size(), to)).ok());
  }
  test::TinyModel model_;
};

TEST_F(ShardedCheckpoint, AMissingShard) {
  fs::remove(shard(2));
  EXPECT_THAT(open_message(model_),
              AllOf(HasSubstr(shard(2).string() + ": cannot open: No such file"),
                    HasSubstr("lists it for tensor "), HasSubstr("fetch the file")));
}

TEST_F(ShardedCheckpoint, ATruncatedShard) {
  fs::resize_file(shard(3), fs::file_size(shard(3)) - 100);
  EXPECT_THAT(open_message(model_), AllOf(HasSubstr(shard(3).string()), HasSubstr("truncated")));
}

TEST_F(ShardedCheckpoint, ADirectoryOrFifoInThePlaceOfAShard) {
  fs::remove(shard(2));
  fs::create_directory(shard(2));
  EXPECT_THAT(open_message(model_), HasSubstr(shard(2).string() + ": is not a regular file"));
}

TEST_F(ShardedCheckpoint, AnIndexOfAnotherCheckpoint) {
  replace_in_index("\"model.norm.weight\": \"model-00003", "\"model.norm.weight\": \"model-00001");
  EXPECT_THAT(open_message(model_),
              AllOf(HasSubstr("lists tensor model.norm.weight in model-00001"),
                    HasSubstr("which does not hold it"), HasSubstr(shard(3).string())));
}

TEST_F(ShardedCheckpoint, AnIndexThatListsWhatIsNotThere) {
  replace_in_index("\"model.norm.weight\"", "\"model.gnome.weight\"");
  EXPECT_THAT(open_message(model_), HasSubstr("lists tensor model.gnome.weight in model-00003"));
}

TEST_F(ShardedCheckpoint, ATensorInTwoShards) {
  fs::copy_file(shard(1), model_.dir() / "copy.safetensors");
  replace_in_index("\"weight_map\": {", "\"weight_map\": {\"x\": \"copy.safetensors\", ");
  EXPECT_THAT(open_message(model_), AllOf(HasSubstr("is stored twice, in "),
                                          HasSubstr("copy.safetensors"), HasSubstr("model-00001")));
}

TEST_F(ShardedCheckpoint, AWayOutOfTheDirectory) {
  replace_in_index("\"model-00003-of-000003.safetensors\"", "\"../model.safetensors\"");
  EXPECT_THAT(open_message(model_),
              HasSubstr("\"../model.safetensors\" is not the name of a file in this directory"));
}

TEST_F(ShardedCheckpoint, ABrokenIndexNamesItsFile) {
  ASSERT_TRUE(write_text_file(model_.dir() / kIndex, "{").ok());
  EXPECT_THAT(open_message(model_), HasSubstr(std::string(kIndex) + ": not valid JSON"));
}

TEST_F(ShardedCheckpoint, LyingTotalSizeIsIgnored) {
  replace_in_index("\"total_size\": ", "\"total_size\": 99");
  EXPECT_EQ(open_message(model_), "");
}

TEST_F(ShardedCheckpoint, LinksIntoAStoreOfBlobs) {
  const test::TempDir blobs;
  fs::rename(shard(1), blobs.path() / "blob");
  fs::create_symlink(blobs.path() / "blob", shard(1));
  EXPECT_EQ(open_message(model_), "");
}

TEST(CheckpointDrafts, StoredWithOrWithoutCopies) {
  test::TinyModelOptions options;
  options.config = test::with_field(options.config, "num_nextn_predict_layers", "1");
  for (const bool copies : {true, false}) {
    options.store_draft_copies = copies;
    const test::TinyModel model(options);
    const auto checkpoint = opened(model.dir(), model.config());
    EXPECT_THAT(checkpoint->notices(), IsEmpty());
    EXPECT_TRUE(checkpoint->has_draft_layer(4));
    EXPECT_EQ(checkpoint->has("model.layers.4.embed_tokens.weight"), copies);
    EXPECT_EQ(checkpoint->dense_bytes(), model.config().dense_bytes());
    std::vector<std::byte> expert(checkpoint->expert_bytes(4));
    EXPECT_TRUE(checkpoint->read(ExpertId{4, 11}, expert.data()).ok());
  }
}

TEST(CheckpointDrafts, PromisedButNotStored) {
  test::TinyModelOptions options;
  options.config = test::with_field(options.config, "num_nextn_predict_layers", "1");
  options.store_drafts = false;
  const test::TinyModel model(options);
  const auto checkpoint = opened(model.dir(), model.config());
  EXPECT_THAT(checkpoint->notices(), ElementsAre(HasSubstr("promises draft layer 4")));
  EXPECT_FALSE(checkpoint->has_draft_layer(4));
}

TEST(CheckpointDrafts, StoredButNotPromised) {
  test::TinyModelOptions options;
  options.config = test::with_field(options.config, "num_nextn_predict_layers", "1");
  const test::TinyModel model(options);
  const ModelConfig without =
      *ModelConfig::parse(test::with_field(options.config, "num_nextn_predict_layers", "0"));
  const auto checkpoint = opened(model.dir(), without);
  EXPECT_THAT(checkpoint->notices(), ElementsAre(HasSubstr("draft layer 4 is stored, but")));
  EXPECT_FALSE(checkpoint->has_draft_layer(4));
  EXPECT_EQ(checkpoint->category_bytes()[static_cast<int>(TensorCategory::kMtp)], 0);
}

TEST(CheckpointDrafts, StoredInPartIsAnError) {
  test::TinyModelOptions options;
  options.config = test::with_field(options.config, "num_nextn_predict_layers", "1");
  const test::TinyModel model(options);
  edit(model.dir(), [](Blobs& blobs) { blobs.erase("model.layers.4.enorm.weight"); });
  EXPECT_THAT(open_message(model),
              HasSubstr("tensor model.layers.4.enorm.weight [1, 136] is missing"));
}

TEST(Checkpoint, TiedEmbeddingsNeedNoHead) {
  const test::TinyModel model;
  const ModelConfig tied =
      *ModelConfig::parse(test::with_field(test::tiny_config(), "tie_word_embeddings", "true"));
  EXPECT_EQ(open_message(model.dir(), tied), "");
  edit(model.dir(), [](Blobs& blobs) { blobs.erase("lm_head.weight"); });
  EXPECT_EQ(open_message(model.dir(), tied), "");
  EXPECT_THAT(open_message(model), HasSubstr("tensor lm_head.weight [96, 136] is missing"));
}

TEST(Checkpoint, DerivedFrequenciesAndMixedDtypesAreAccepted) {
  const test::TinyModel model;
  edit(model.dir(), [](Blobs& blobs) {
    blobs["model.layers.0.self_attn.rotary_emb.inv_freq"] = {StoredType::kF32, {1}, "abcd"};
    resize(blobs[kOProj], StoredType::kF16, {136, 60});
    blobs.erase(kOProjScale);
  });
  const auto checkpoint = opened(model.dir(), model.config());
  EXPECT_EQ(checkpoint->read(kOProj, 136, 60)->view.spec.format, QuantFormat::kF16);
}

}  // namespace
}  // namespace stoker::storage
