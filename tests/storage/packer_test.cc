#include "storage/packer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <climits>
#include <csignal>
#include <filesystem>
#include <mutex>
#include <optional>
#include <set>

#include "storage/data_file.h"
#include "storage/pack_journal.h"
#include "storage/safetensors_writer.h"
#include "storage/store_verify.h"
#include "storage/store_writer.h"
#include "storage/write_file.h"
#include "tests/support/packed_model.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;
using test::contents;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string message(const Status& status) { return status.ok() ? "" : status.error().message(); }

Status pack_tiny(const test::TinyModel& model, const fs::path& out,
                 const PackOptions& options = {}) {
  return pack(model.dir(), *test::open_checkpoint(model.dir(), model.config()), out, options);
}

TEST(Pack, TheSameModelGivesTheSameBytes) {
  const test::TinyModel model;
  const test::TempDir temp;
  ASSERT_EQ(message(pack_tiny(model, temp.path() / "a", {.num_files = 3})), "");
  ASSERT_EQ(message(pack_tiny(model, temp.path() / "b/", {.num_files = 3})), "");
  EXPECT_EQ(contents(temp.path() / "a"), contents(temp.path() / "b"));
  // Nothing is left beside them.
  EXPECT_EQ(std::distance(fs::directory_iterator(temp.path()), fs::directory_iterator()), 2);
}

TEST(Pack, RefusesWhatMakesNoSense) {
  test::TinyModelOptions options;
  options.config = test::tiny_config("deepseek_v32", "bf16");
  const test::TinyModel model(options);
  const test::TempDir temp;
  EXPECT_THAT(message(pack_tiny(model, temp.path() / "a",
                                {.experts = QuantSpec{QuantFormat::kF8E4m3B128}})),
              HasSubstr("the experts of layer 1 are bf16: FP8 experts are packed as published"));
  EXPECT_THAT(message(pack_tiny(model, temp.path() / "a", {.num_files = 13})),
              HasSubstr("13 expert files are too many: a layer has 12 experts"));
  fs::create_directory(temp.path() / "there");
  EXPECT_THAT(message(pack_tiny(model, temp.path() / "there")), HasSubstr("is there already"));
  fs::create_directory(temp.path() / "b.partial");
  CHECK(write_text_file(temp.path() / "b.partial" / "notes.txt", "x").ok());
  EXPECT_THAT(message(pack_tiny(model, temp.path() / "b")),
              HasSubstr("b.partial: is not an unfinished store, but holds notes.txt"));
  EXPECT_TRUE(fs::exists(temp.path() / "b.partial" / "notes.txt"));
  EXPECT_FALSE(fs::exists(temp.path() / "a"));
}

// A published file that holds no numbers is found while packing, too.
TEST(Pack, RefusesWeightsThatAreNotFinite) {
  const test::TinyModel model;
  const test::TempDir temp;
  const auto checkpoint = test::open_checkpoint(model.dir(), model.config());
  const std::string name = "model.layers.2.mlp.experts.7.up_proj.weight";
  const StoredTensor& tensor = *checkpoint->find(name);
  // Whatever the sign, the code becomes a NaN.
  const std::string bytes = contents(model.dir()).at("model.safetensors");
  const auto code = static_cast<unsigned char>(bytes[static_cast<std::size_t>(tensor.offset + 5)]);
  test::flip(model.dir() / "model.safetensors", tensor.offset + 5, ~code & 0x7f);
  EXPECT_THAT(message(pack(model.dir(), *checkpoint, temp.path() / "a", {})),
              AllOf(HasSubstr(name), HasSubstr("not finite at [0, 5]")));
}

constexpr int unit_of(ExpertId id) { return id.layer * 1000 + id.expert; }

// Content that fails after a while, as a drive does, or a process that is killed: after a number of
// units, which they are being up to the threads, or at one of them.
class FailingContent final : public StoreContent {
 public:
  FailingContent(int units, Error error, std::optional<ExpertId> at = std::nullopt)
      : left_(units), error_(std::move(error)), fails_at_(at ? unit_of(*at) : kNone) {}

  Status expert(ExpertId id, std::span<std::byte> dst, ScratchBytes& /*scratch*/) override {
    for (std::size_t i = 0; i < dst.size(); ++i) {
      dst[i] = static_cast<std::byte>(id.layer * 7 + id.expert * 31 + static_cast<int>(i % 251));
    }
    return take(unit_of(id));
  }
  Status dense(std::size_t index, std::int64_t offset, std::span<std::byte> dst,
               ScratchBytes& /*scratch*/) override {
    for (std::size_t i = 0; i < dst.size(); ++i) {
      dst[i] = static_cast<std::byte>(index * 3 + static_cast<std::size_t>(offset) + i);
    }
    return take(-1 - static_cast<int>(index));
  }
  std::int64_t scratch_bytes() const override { return 0; }

  const std::set<int>& made() const { return made_; }

 private:
  Status take(int unit) {
    const std::lock_guard lock(mutex_);
    if (unit == fails_at_ || left_-- <= 0) return error_;
    made_.insert(unit);
    return {};
  }
  static constexpr int kNone = INT_MIN;

  std::mutex mutex_;
  int left_;
  const Error error_;
  const int fails_at_;
  std::set<int> made_;
};

constexpr int kAll = 1 << 20;

class Resume : public ::testing::Test {
 protected:
  Resume() : config_(*ModelConfig::parse(test::tiny_config())) {
    plan_.source_model = "made";
    plan_.options = "options one";
    plan_.copies = {{"config.json", test::tiny_config()}};
    plan_.dense = {{"a", StoredType::kF32, {100, 70}},
                   {"b", StoredType::kBf16, {33}},
                   {"c", StoredType::kF8E4m3, {51, 77}}};
    plan_.expert_specs.assign(config_.layers().size(), QuantSpec{QuantFormat::kF8E4m3B128});
    plan_.layers = {1, 2, 3};
    plan_.num_files = 2;
  }
  Status write(const char* name, StoreContent& content) {
    return write_store(temp_.path() / name, config_, plan_, content, {});
  }
  std::map<std::string, std::string> whole() {
    FailingContent content(kAll, Error(ErrorCode::kIo, ""));
    CHECK(write("whole", content).ok());
    return contents(temp_.path() / "whole");
  }
  fs::path partial(const char* name) const {
    return temp_.path() / (std::string(name) + ".partial");
  }

  const ModelConfig config_;
  StorePlan plan_;
  test::TempDir temp_;
};

// Stopped after every number of units: never a store, then the same store, and nothing that was
// done is done again.
TEST_F(Resume, GoesOnWhereItWas) {
  const auto expected = whole();
  const int units = 3 + 3 * 12;
  for (int stop = 0; stop < units; stop += 3) {
    const std::string name = fmt::format("s{}", stop);
    FailingContent first(stop, Error(ErrorCode::kIo, "unplugged"));
    EXPECT_EQ(message(write(name.c_str(), first)), "unplugged");
    EXPECT_FALSE(fs::exists(temp_.path() / name));
    EXPECT_FALSE(fs::exists(partial(name.c_str()) / kManifestFile));
    FailingContent second(kAll, Error(ErrorCode::kIo, ""));
    ASSERT_EQ(message(write(name.c_str(), second)), "");
    EXPECT_EQ(contents(temp_.path() / name), expected) << stop;
    for (const int unit : first.made()) EXPECT_FALSE(second.made().contains(unit)) << unit;
    EXPECT_EQ(std::ssize(first.made()) + std::ssize(second.made()), units);
  }
}

// A journal whose end is torn, at any byte: what is whole counts.
TEST_F(Resume, TakesATornJournal) {
  const auto expected = whole();
  FailingContent first(20, Error(ErrorCode::kIo, "unplugged"));
  ASSERT_FALSE(write("torn", first).ok());
  const auto begun = contents(partial("torn"));
  const std::string& journal = begun.at(kJournalFile);
  const std::size_t first_line = journal.find('\n') + 1;
  for (std::size_t size = first_line; size < journal.size(); size += 97) {
    fs::remove_all(partial("torn"));
    fs::create_directory(partial("torn"));
    for (const auto& [name, content] : begun) {
      const bool cut = name == kJournalFile;
      CHECK(write_text_file(partial("torn") / name, cut ? content.substr(0, size) : content).ok());
    }
    FailingContent rest(kAll, Error(ErrorCode::kIo, ""));
    ASSERT_EQ(message(write("torn", rest)), "");
    EXPECT_EQ(contents(temp_.path() / "torn"), expected) << size;
    EXPECT_GE(std::ssize(rest.made()), 39 - 20);
    fs::remove_all(temp_.path() / "torn");
  }
}

TEST_F(Resume, RefusesAnotherPlan) {
  FailingContent first(20, Error(ErrorCode::kIo, "unplugged"));
  ASSERT_FALSE(write("other", first).ok());
  const auto begun = contents(partial("other"));
  plan_.source = {1, 1};  // a source file was replaced
  plan_.options = "options two";
  FailingContent second(kAll, Error(ErrorCode::kIo, ""));
  EXPECT_THAT(message(write("other", second)),
              AllOf(HasSubstr("other.partial was begun as: options one from made. Now asked for: "
                              "options two from made"),
                    HasSubstr("delete it to begin anew")));
  EXPECT_EQ(contents(partial("other")), begun);
}

// Killed between the manifest and the last rename: complete, only its name is missing.
TEST_F(Resume, PublishesWhatIsComplete) {
  const auto expected = whole();
  fs::rename(temp_.path() / "whole", partial("late"));
  CHECK(write_text_file(partial("late") / kJournalFile, "left").ok());
  FailingContent content(0, Error(ErrorCode::kIo, "nothing to do"));
  ASSERT_EQ(message(write("late", content)), "");
  EXPECT_EQ(contents(temp_.path() / "late"), expected);
}

TEST_F(Resume, LeavesACompleteStoreOfAnotherPlanAlone) {
  whole();
  fs::rename(temp_.path() / "whole", partial("late"));
  plan_.source = {1, 1};
  FailingContent content(kAll, Error(ErrorCode::kIo, ""));
  EXPECT_THAT(message(write("late", content)), HasSubstr("holds the complete store of something"));
}

// What the journal lists but the drive does not hold is found before anything is published.
TEST_F(Resume, VerifiesWhatItFinds) {
  // The last unit fails: all others are listed.
  FailingContent first(kAll, Error(ErrorCode::kIo, "unplugged"), ExpertId{3, 11});
  ASSERT_FALSE(write("bad", first).ok());
  test::flip(partial("bad") / expert_file_name(0), 4096 + 24576 + 17);
  FailingContent second(kAll, Error(ErrorCode::kIo, ""));
  EXPECT_THAT(message(write("bad", second)),
              AllOf(HasSubstr("experts-000.safetensors: offset 28672"),
                    HasSubstr("1 places do not hold what was written")));
  EXPECT_FALSE(fs::exists(temp_.path() / "bad"));
}

TEST_F(Resume, OneAtATime) {
  // The first is held up inside its first unit while the second begins.
  class Waiting final : public StoreContent {
   public:
    explicit Waiting(std::function<void()> once) : once_(std::move(once)) {}
    Status expert(ExpertId, std::span<std::byte> dst, ScratchBytes&) override {
      std::fill(dst.begin(), dst.end(), std::byte{1});
      return {};
    }
    Status dense(std::size_t, std::int64_t, std::span<std::byte> dst, ScratchBytes&) override {
      std::fill(dst.begin(), dst.end(), std::byte{1});
      std::call_once(flag_, once_);
      return {};
    }
    std::int64_t scratch_bytes() const override { return 0; }

   private:
    std::once_flag flag_;
    std::function<void()> once_;
  };
  std::string second;
  Waiting content([&] {
    FailingContent other(kAll, Error(ErrorCode::kIo, ""));
    second = message(write("busy", other));
  });
  EXPECT_EQ(message(write("busy", content)), "");
  EXPECT_THAT(second, HasSubstr("busy.partial: another stoker is packing there"));
}

// A drive without room: said with the numbers, what is done stays, and it goes on later.
TEST_F(Resume, AFullDriveKeepsWhatIsDone) {
  const auto expected = whole();
  FailingContent first(20, Error(ErrorCode::kResource, "file: cannot write: No space left"));
  EXPECT_THAT(message(write("full", first)),
              AllOf(HasSubstr("No space left"), HasSubstr("the store takes"), HasSubstr("are free"),
                    HasSubstr("full.partial: make room and run the same command again")));
  FailingContent second(kAll, Error(ErrorCode::kIo, ""));
  ASSERT_EQ(message(write("full", second)), "");
  EXPECT_EQ(contents(temp_.path() / "full"), expected);
  EXPECT_EQ(std::ssize(second.made()), 39 - 20);
}

// The same by a limit that the system really enforces.
TEST_F(Resume, AFileThatMayNotGrow) {
  const auto expected = whole();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignore = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 200 << 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  FailingContent first(kAll, Error(ErrorCode::kIo, ""));
  const std::string limited = message(write("limited", first));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, ignore);
  EXPECT_THAT(limited, AllOf(HasSubstr("File too large"), HasSubstr("run the same command again")));
  FailingContent second(kAll, Error(ErrorCode::kIo, ""));
  ASSERT_EQ(message(write("limited", second)), "");
  EXPECT_EQ(contents(temp_.path() / "limited"), expected);
}

}  // namespace
}  // namespace stoker::storage
