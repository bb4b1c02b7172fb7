// What stores promise, at length: ten thousand flipped bits, and the memory that packing takes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "core/base/file.h"
#include "quant/tile16.h"
#include "storage/data_file.h"
#include "storage/store_verify.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/packed_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using test::PackedModel;

// Opens a store and reads everything a run would: what is wrong, or "".
std::string first_error(const fs::path& dir, std::span<const fs::path> expert_dirs = {}) {
  const auto config = ModelConfig::load(dir);
  if (!config.ok()) return config.error().message();
  const auto opened = Store::open(dir, *config, expert_dirs);
  if (!opened.ok()) return opened.error().message();
  const Store& store = **opened;
  for (const TensorSpec& spec : tensor_table(*config)) {
    if (!store.has(spec.name)) continue;
    const auto weight = store.read(spec.name, spec.rows, spec.cols);
    if (!weight.ok()) return weight.error().message();
  }
  for (const int layer : store.expert_layers()) {
    test::AlignedMemory slot(store.expert_bytes(layer));
    for (int expert = 0; expert < config->n_routed_experts; ++expert) {
      const Status status = store.read({layer, expert}, slot.data());
      if (!status.ok()) return status.error().message();
    }
  }
  return "";
}

// A position among all bytes of all files, each as likely as any other.
struct Position {
  fs::path file;
  std::int64_t offset;
};
Position position(const std::map<std::string, std::int64_t>& sizes, const fs::path& dir,
                  std::mt19937_64& random) {
  std::int64_t total = 0;
  for (const auto& [name, size] : sizes) total += size;
  auto at = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(total));
  for (const auto& [name, size] : sizes) {
    if (at < size) return {dir / name, at};
    at -= size;
  }
  CHECK(false, "{}", at);
  return {};
}

std::map<std::string, std::int64_t> sizes_of(const fs::path& dir) {
  std::map<std::string, std::int64_t> sizes;
  for (const auto& entry : fs::directory_iterator(dir)) {
    sizes[entry.path().filename().string()] = static_cast<std::int64_t>(entry.file_size());
  }
  return sizes;
}

TEST(TenThousandBits, EveryOneIsCaught) {
  test::TinyModelOptions model_options;
  model_options.config =
      test::with_field(test::tiny_config("deepseek_v32", "fp8"), "num_nextn_predict_layers", "1");
  const PackedModel model(model_options,
                          {.experts = QuantSpec{QuantFormat::kInt4, 64}, .num_files = 2});
  ASSERT_EQ(first_error(model.dir()), "");
  const auto sizes = sizes_of(model.dir());
  std::mt19937_64 random(3);
  int run = 0, verify = 0;
  for (int i = 0; i < 10'000; ++i) {
    const Position at = position(sizes, model.dir(), random);
    const auto mask = static_cast<unsigned char>(1u << random() % 8);
    test::flip(at.file, at.offset, mask);
    const std::string error = first_error(model.dir());
    const bool only_copied = at.file.filename() == "generation_config.json";
    if (error.empty() || i % 100 == 0) {
      const auto report = verify_store(model.dir(), {});
      ASSERT_TRUE(report.ok());
      ASSERT_FALSE(report->bad.empty()) << at.file << " " << at.offset;
      EXPECT_EQ(report->bad[0].file, at.file);
      ++verify;
    }
    if (!only_copied) {
      ASSERT_NE(error, "") << at.file << " " << at.offset;
      EXPECT_THAT(error, ::testing::HasSubstr(at.file.filename().string()));
      ++run;
    }
    test::flip(at.file, at.offset, mask);
  }
  EXPECT_GT(run, 9'900);
  EXPECT_GE(verify, 100);
  EXPECT_EQ(first_error(model.dir()), "");
}

// With a second copy of the expert files nothing is lost, wherever in the first the bit is.
TEST(TenThousandBits, EveryOneIsRepairedFromTheMirror) {
  const PackedModel model({}, {.num_files = 2});
  const fs::path a = model.dir("a"), b = model.dir("b");
  for (const fs::path& dir : {a, b}) {
    fs::create_directory(dir);
    for (int file = 0; file < 2; ++file) {
      fs::copy(model.dir() / expert_file_name(file), dir / expert_file_name(file));
    }
  }
  const std::array drives{a, b};
  const auto sizes = sizes_of(a);
  std::mt19937_64 random(4);
  int left_out = 0;
  for (int i = 0; i < 2'000; ++i) {
    const Position at = position(sizes, a, random);
    const auto mask = static_cast<unsigned char>(1u << random() % 8);
    test::flip(at.file, at.offset, mask);
    ASSERT_EQ(first_error(model.dir(), drives), "") << at.file << " " << at.offset;
    left_out += model.store(drives)->notices().empty() ? 0 : 1;
    test::flip(at.file, at.offset, mask);
  }
  EXPECT_GT(left_out, 0);  // a bit of a header or a table
}

std::int64_t status_bytes(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kib = 0;
    if (word == field && status >> kib) return kib << 10;
  }
  return -1;
}

// Full-width experts from F32: 176 MB each before they are converted.
TEST(PackMemory, StaysWithinTwoGibibytes) {
  test::TinyModelOptions options;
  options.config = test::tiny_config("deepseek_v32", "f32");
  for (const auto& [field, value] : {std::pair("hidden_size", "7168"),
                                     {"moe_intermediate_size", "2048"},
                                     {"num_hidden_layers", "2"},
                                     {"n_routed_experts", "12"}}) {
    options.config = test::with_field(options.config, field, value);
  }
  const test::TinyModel model(options);
  const test::TempDir temp;
  const auto checkpoint = test::open_checkpoint(model.dir(), model.config());
  std::ofstream("/proc/self/clear_refs") << "5";  // the high-water mark begins anew
  const std::int64_t before = status_bytes("VmHWM:");
  const Status packed = pack(model.dir(), *checkpoint, temp.path() / "store",
                             {.experts = QuantSpec{QuantFormat::kInt4, 64}});
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  const std::int64_t peak = status_bytes("VmHWM:");
  RecordProperty("peak_mib", static_cast<int>(peak >> 20));
  EXPECT_GT(peak, before);
  EXPECT_LT(peak, std::int64_t{2} << 30);
}

}  // namespace
}  // namespace stoker::storage
