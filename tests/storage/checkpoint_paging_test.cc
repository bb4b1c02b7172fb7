// Experts read block by block out of published shards are what Checkpoint::read() gives, whatever
// engine brings them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "storage/block_reader.h"
#include "storage/checkpoint.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/watchdog.h"

namespace stoker::storage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using namespace std::chrono_literals;

std::unique_ptr<Checkpoint> opened(const std::filesystem::path& dir, const ModelConfig& config) {
  auto checkpoint = Checkpoint::open(dir, config);
  CHECK(checkpoint.ok(), "{}", checkpoint.error().message());
  return std::move(checkpoint).value();
}

// Pages one expert in and lands its blocks.
Status page_in(const Checkpoint& checkpoint, ExpertReader& reader, ExpertId id, std::byte* slot) {
  const test::Watchdog watchdog(60s);
  const int count = checkpoint.num_blocks(id.layer);
  for (int block = 0; block < count; ++block) {
    BlockRead read;
    read.tag = static_cast<std::uint32_t>(block);
    read.id = id;
    read.block = block;
    read.dst = slot + checkpoint.block_offset(id.layer, block);
    reader.submit({&read, 1});
  }
  std::array<BlockDone, 1> done;
  for (int landed = 0; landed < count;) {
    reader.wait(100ms);
    if (reader.reap(done) == 0) continue;
    CHECK(done[0].outcome == ReadOutcome::kRead);
    const int block = static_cast<int>(done[0].tag);
    RETURN_IF_ERROR(checkpoint.land(id, block, done[0].replica,
                                    slot + checkpoint.block_offset(id.layer, block)));
    ++landed;
  }
  return {};
}

void expect_the_same(const Checkpoint& checkpoint, const ModelConfig& config,
                     ExpertReader& reader) {
  for (const LayerSpec& layer : config.layers()) {
    if (layer.ffn != FfnKind::kMoe) continue;
    const std::int64_t bytes = checkpoint.expert_bytes(layer.index);
    const test::AlignedMemory paged(bytes), whole(bytes);
    for (int e = 0; e < layer.router.num_experts; ++e) {
      const ExpertId id{layer.index, e};
      const Status status = page_in(checkpoint, reader, id, paged.data());
      ASSERT_TRUE(status.ok()) << status.error().message();
      ASSERT_TRUE(checkpoint.read(id, whole.data()).ok());
      for (int block = 0; block < checkpoint.num_blocks(layer.index); ++block) {
        const std::int64_t at = checkpoint.block_offset(layer.index, block);
        const ExpertPart part = checkpoint.part(layer.index, block, paged.data() + at, kHost);
        const quant::ExpertBlocks blocks(config.hidden_size, config.moe_intermediate_size,
                                         checkpoint.expert_spec(layer.index));
        EXPECT_EQ(part.num_rows, blocks.block(block).num_rows);
        ASSERT_EQ(std::memcmp(paged.data() + at, whole.data() + at,
                              static_cast<std::size_t>(blocks.block(block).bytes)),
                  0)
            << "layer " << layer.index << " expert " << e << " block " << block;
      }
    }
  }
}

class Paging : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(Paging, IsReading) {
  test::TinyModelOptions options;
  options.config = test::tiny_config("deepseek_v32", std::get<0>(GetParam()));
  options.config = test::with_field(options.config, "num_nextn_predict_layers", "1");
  options.shards = std::get<1>(GetParam());
  const test::TinyModel model(options);
  const auto checkpoint = opened(model.dir(), model.config());
  for (const IoChoice io : {IoChoice::kUring, IoChoice::kPread}) {
    for (const DirectChoice direct : {DirectChoice::kAuto, DirectChoice::kOff}) {
      auto reader = open_reader(*checkpoint, {.io = io, .direct = direct});
      ASSERT_TRUE(reader.ok()) << reader.error().message();
      expect_the_same(*checkpoint, model.config(), **reader);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, Paging,
                         ::testing::Values(std::tuple{"fp8", 1}, std::tuple{"fp8", 3},
                                           std::tuple{"bf16", 2}, std::tuple{"f16", 1},
                                           std::tuple{"f32", 3}));

class ReferencePaging : public ::testing::TestWithParam<const char*> {};

TEST_P(ReferencePaging, IsReading) {
  const std::filesystem::path shared(STOKER_SHARED_DIR);
  if (shared.empty()) GTEST_SKIP() << "STOKER_SHARED_DIR is empty";
  const std::filesystem::path dir = shared / "reference" / GetParam();
  const Result<ModelConfig> config = ModelConfig::load(dir);
  ASSERT_TRUE(config.ok()) << config.error().message();
  const auto checkpoint = opened(dir, *config);
  auto reader = open_reader(*checkpoint, {});
  ASSERT_TRUE(reader.ok()) << reader.error().message();
  expect_the_same(*checkpoint, *config, **reader);
}

INSTANTIATE_TEST_SUITE_P(Shared, ReferencePaging,
                         ::testing::Values("v32-fp8", "v32-odd-bf16", "v32-f32-negative-bias"));

TEST(PagingErrors, ValuesThatAreNotFiniteAreSaidAsReadSaysThem) {
  const test::TinyModel model;
  const auto checkpoint = opened(model.dir(), model.config());
  const std::string name = "model.layers.2.mlp.experts.5.down_proj.weight";
  const StoredTensor* tensor = checkpoint->find(name);
  std::fstream file(model.dir() / "model.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(tensor->offset + 3 * tensor->row_bytes() + 2);
  file.put('\x7f');
  file.close();

  auto reader = open_reader(*checkpoint, {.direct = DirectChoice::kOff});
  ASSERT_TRUE(reader.ok()) << reader.error().message();
  const test::AlignedMemory slot(checkpoint->expert_bytes(2));
  const Status landed = page_in(*checkpoint, **reader, {2, 5}, slot.data());
  ASSERT_FALSE(landed.ok());
  EXPECT_EQ(landed.error().code(), ErrorCode::kCorrupt);
  EXPECT_THAT(
      landed.error().message(),
      AllOf(HasSubstr("model.safetensors: tensor " + name), HasSubstr("not finite at [3, 2]"),
            HasSubstr(fmt::format("byte {}", tensor->offset + 3 * tensor->row_bytes() + 2))));
  EXPECT_EQ(landed.error().message(), checkpoint->read({2, 5}, slot.data()).error().message());
}

}  // namespace
}  // namespace stoker::storage
