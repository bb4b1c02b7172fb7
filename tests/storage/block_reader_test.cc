#include "storage/block_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "tests/support/aligned_memory.h"
#include "tests/support/extent_files.h"
#include "tests/support/faulty_engine.h"
#include "tests/support/temp_dir.h"
#include "tests/support/watchdog.h"

namespace stoker::storage {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using namespace std::chrono_literals;

using test::AlignedMemory;
using test::ExtentFiles;
using test::Faults;
using test::TempDir;
using test::Watchdog;

std::unique_ptr<BlockReader> opened(const ExtentSource& source, const ReaderOptions& options) {
  auto reader = open_reader(source, options);
  CHECK(reader.ok(), "{}", reader.error().message());
  return std::move(reader).value();
}

// Where each block of the files is read to, and wishes for them: tag = number of the block.
class Desk {
 public:
  explicit Desk(const ExtentFiles& files)
      : files_(files), memory_(files.num_blocks() * files.block_bytes()) {}

  BlockRead wish(int i, ReadClass read_class = ReadClass::kDemand, float priority = 0.0f) const {
    BlockRead read;
    read.tag = static_cast<std::uint32_t>(i);
    read.id = files_.id_of(i);
    read.block = files_.block_of(i);
    read.dst = memory_.data() + i * files_.block_bytes();
    read.read_class = read_class;
    read.priority = priority;
    return read;
  }
  void submit(ExpertReader& reader, std::span<const int> blocks, ReadClass read_class) const {
    std::vector<BlockRead> reads;
    for (const int i : blocks) reads.push_back(wish(i, read_class));
    reader.submit(reads);
  }
  bool holds(std::uint32_t tag) const {
    return files_.holds(
        static_cast<int>(tag),
        memory_.bytes().subspan(tag * static_cast<std::size_t>(files_.block_bytes()),
                                static_cast<std::size_t>(files_.block_bytes())));
  }
  std::span<std::byte> bytes() const { return memory_.bytes(); }

 private:
  const ExtentFiles& files_;
  AlignedMemory memory_;
};

// Reaps until `count` reads have completed.
std::vector<BlockDone> finish(ExpertReader& reader, std::size_t count) {
  const Watchdog watchdog(60s);
  std::vector<BlockDone> all;
  std::array<BlockDone, 3> some;  // fewer than there may be
  while (all.size() < count) {
    reader.wait(100ms);
    const std::size_t got = reader.reap(some);
    for (std::size_t i = 0; i < got; ++i) all.push_back(std::move(some[i]));
  }
  return all;
}

std::vector<std::uint32_t> tags_of(const std::vector<BlockDone>& done, ReadOutcome outcome) {
  std::vector<std::uint32_t> tags;
  for (const BlockDone& one : done) {
    if (one.outcome == outcome) tags.push_back(one.tag);
  }
  return tags;
}

int num_descriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

struct Way {
  IoChoice io;
  DirectChoice direct;
  bool registered;
  friend void PrintTo(const Way& way, std::ostream* out) {
    *out << (way.io == IoChoice::kUring ? "uring" : "pread")
         << (way.direct == DirectChoice::kOff ? " buffered" : " direct")
         << (way.registered ? " registered" : "");
  }
};

class EveryWay : public ::testing::TestWithParam<Way> {
 protected:
  ReaderOptions options() const {
    ReaderOptions options;
    options.io = GetParam().io;
    options.direct = GetParam().direct;
    options.register_memory = GetParam().registered;
    return options;
  }
  TempDir dir_;
};

TEST_P(EveryWay, BringsEveryBlock) {
  for (const int stretches : {1, 4}) {
    const ExtentFiles files({.dirs = {dir_.path()}, .num_experts = 16, .stretches = stretches});
    const Desk desk(files);
    const auto reader = opened(files, options());
    EXPECT_TRUE(reader->register_memory(desk.bytes()).ok());
    for (int i = 0; i < files.num_blocks(); ++i) reader->submit(std::array{desk.wish(i)});
    const auto done = finish(*reader, static_cast<std::size_t>(files.num_blocks()));
    EXPECT_THAT(tags_of(done, ReadOutcome::kRead), SizeIs(files.num_blocks()));
    for (const BlockDone& one : done) EXPECT_TRUE(desk.holds(one.tag)) << one.tag;
    EXPECT_THAT(reader->notices(), IsEmpty());
    const ReaderLoad load = reader->load();
    EXPECT_EQ(load.bytes_read, files.num_blocks() * files.block_bytes());
    EXPECT_EQ(load.queued_demand_bytes + load.queued_speculative_bytes + load.reading_bytes, 0);
    EXPECT_GT(load.busy_us, 0);
  }
}

// A stretch may reach past the end of its file.
TEST_P(EveryWay, ReadsToTheEndOfTheFile) {
  const ExtentFiles files({.dirs = {dir_.path()}, .cut = 4097});
  const Desk desk(files);
  const auto reader = opened(files, options());
  const int last = files.num_blocks() - 1;
  reader->submit(std::array{desk.wish(last)});
  const auto done = finish(*reader, 1);
  EXPECT_EQ(done[0].outcome, ReadOutcome::kRead);
  EXPECT_TRUE(desk.holds(done[0].tag));
  EXPECT_EQ(reader->load().bytes_read, files.block_bytes() - 4097);
}

TEST_P(EveryWay, GoesOnAfterShortReadsAndInterruptions) {
  const ExtentFiles files({.dirs = {dir_.path()}});
  const Desk desk(files);
  Faults faults;
  faults.shorten(0, 4096);
  faults.shorten(1, 5000);  // not where direct I/O can go on
  faults.shorten(2, 100);   // brings less than a page
  faults.fail(3, EINTR);
  faults.fail(4, EAGAIN);
  ReaderOptions options = this->options();
  options.wrap_engine = faults.wrapper();
  const auto reader = opened(files, options);
  reader->submit(std::array{desk.wish(5)});
  EXPECT_EQ(finish(*reader, 1)[0].outcome, ReadOutcome::kRead);
  EXPECT_EQ(faults.num_issued(), 6);
  EXPECT_TRUE(desk.holds(5));
}

TEST_P(EveryWay, AFailedReadNamesFileAndPlace) {
  const ExtentFiles files({.dirs = {dir_.path()}, .stretches = 4});
  const Desk desk(files);
  Faults faults;
  faults.fail(1, EIO);
  ReaderOptions options = this->options();
  options.wrap_engine = faults.wrapper();
  const auto reader = opened(files, options);
  reader->submit(std::array{desk.wish(3)});
  const auto done = finish(*reader, 1);
  ASSERT_EQ(done[0].outcome, ReadOutcome::kFailed);
  EXPECT_EQ(done[0].status.error().code(), ErrorCode::kIo);
  const std::int64_t at = 3 * files.block_bytes() + files.block_bytes() / 4;
  EXPECT_THAT(done[0].status.error().message(),
              AllOf(HasSubstr("experts.bin"), HasSubstr(fmt::format("at byte {}", at)),
                    HasSubstr("Input/output error")));
  reader->submit(std::array{desk.wish(3)});  // the tag is free again
  EXPECT_EQ(finish(*reader, 1)[0].outcome, ReadOutcome::kRead);
  EXPECT_TRUE(desk.holds(3));
}

TEST_P(EveryWay, EndlessInterruptionIsAnError) {
  const ExtentFiles files({.dirs = {dir_.path()}});
  const Desk desk(files);
  Faults faults;
  for (int i = 0; i < 1000; ++i) faults.fail(i, EAGAIN);
  ReaderOptions options = this->options();
  options.wrap_engine = faults.wrapper();
  const auto reader = opened(files, options);
  reader->submit(std::array{desk.wish(0)});
  EXPECT_EQ(finish(*reader, 1)[0].outcome, ReadOutcome::kFailed);
}

TEST_P(EveryWay, AFileThatShrinksIsAnError) {
  const ExtentFiles files({.dirs = {dir_.path()}});
  const Desk desk(files);
  const auto reader = opened(files, options());
  std::filesystem::resize_file(files.extent_files()[0].path, files.block_bytes() + 1000);
  reader->submit(std::array{desk.wish(0), desk.wish(1), desk.wish(2)});
  const auto done = finish(*reader, 3);
  EXPECT_THAT(tags_of(done, ReadOutcome::kRead), ElementsAre(0));
  for (const BlockDone& one : done) {
    if (one.outcome != ReadOutcome::kFailed) continue;
    EXPECT_THAT(one.status.error().message(), HasSubstr("more were there when it was opened"));
  }
  const auto again = open_reader(files, options());
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(again.error().message(), HasSubstr("was 2097152 when the model was opened"));
}

TEST_P(EveryWay, EndsUnderLoad) {
  const ExtentFiles files({.dirs = {dir_.path()}, .num_experts = 64});
  const Desk desk(files);
  const Watchdog watchdog(60s);
  for (int round = 0; round < 10; ++round) {
    const auto reader = opened(files, options());
    for (int i = 0; i < files.num_blocks(); ++i) {
      reader->submit(std::array{desk.wish(i, static_cast<ReadClass>(i % kNumReadClasses))});
    }
    std::this_thread::sleep_for(std::chrono::microseconds(round * 200));
  }
}

// A drive that does not answer: the reader waits for it, since the kernel may still write.
TEST_P(EveryWay, WaitsAtTheEndForWhatWasIssued) {
  const ExtentFiles files({.dirs = {dir_.path()}});
  const Desk desk(files);
  const Watchdog watchdog(60s);
  Faults faults;
  faults.hold();
  ReaderOptions options = this->options();
  options.wrap_engine = faults.wrapper();
  auto reader = opened(files, options);
  for (int i = 0; i < 8; ++i) reader->submit(std::array{desk.wish(i)});
  while (faults.num_issued() < 8) std::this_thread::yield();
  reader->wait(1ms);
  std::array<BlockDone, 8> done;
  EXPECT_EQ(reader->reap(done), 0);
  std::thread rescue([&] {
    std::this_thread::sleep_for(50ms);
    faults.let_all_go();
  });
  const auto start = std::chrono::steady_clock::now();
  reader.reset();
  EXPECT_GT(std::chrono::steady_clock::now() - start, 40ms);
  rescue.join();
}

TEST_P(EveryWay, LeaksNoDescriptors) {
  const ExtentFiles files({.dirs = {dir_.path()}});
  const Desk desk(files);
  const int before = num_descriptors();
  for (int round = 0; round < 20; ++round) {
    const auto reader = opened(files, options());
    EXPECT_GT(num_descriptors(), before);
    reader->submit(std::array{desk.wish(1)});
  }
  EXPECT_EQ(num_descriptors(), before);
}

INSTANTIATE_TEST_SUITE_P(Engines, EveryWay,
                         ::testing::Values(Way{IoChoice::kUring, DirectChoice::kAuto, true},
                                           Way{IoChoice::kUring, DirectChoice::kAuto, false},
                                           Way{IoChoice::kUring, DirectChoice::kOff, true},
                                           Way{IoChoice::kPread, DirectChoice::kAuto, false},
                                           Way{IoChoice::kPread, DirectChoice::kOff, false}));

// One read at a time and completions kept back, so that the order of issue is the order seen.
class Order : public ::testing::Test {
 protected:
  Order() : files_({.dirs = {dir_.path()}, .num_experts = 16}), desk_(files_) {
    options_.demand_bytes_in_flight = files_.block_bytes();
    options_.speculative_bytes_in_flight = files_.block_bytes();
    options_.wrap_engine = faults_.wrapper();
    faults_.hold();
  }
  // Occupies the drive with block 0, so that what follows queues up.
  std::unique_ptr<BlockReader> occupied() {
    auto reader = opened(files_, options_);
    reader->submit(std::array{desk_.wish(0)});
    while (faults_.num_issued() < 1) std::this_thread::yield();
    return reader;
  }
  // Waits until the I/O thread has seen everything submitted: it registers memory after that.
  void settle(BlockReader& reader) const {
    CHECK(reader.register_memory(desk_.bytes().first(4096)).ok());
  }

  const Watchdog watchdog_{60s};
  TempDir dir_;
  const ExtentFiles files_;
  const Desk desk_;
  Faults faults_;
  ReaderOptions options_;
};

TEST_F(Order, DemandFirstThenClassThenPriority) {
  const auto reader = occupied();
  reader->submit(std::array{desk_.wish(1, ReadClass::kWarm), desk_.wish(2, ReadClass::kTwoAhead, 1),
                            desk_.wish(3, ReadClass::kTwoAhead, 2),
                            desk_.wish(4, ReadClass::kNextLayer), desk_.wish(5),
                            desk_.wish(6, ReadClass::kDemand, 1)});
  faults_.let_all_go();
  EXPECT_THAT(tags_of(finish(*reader, 7), ReadOutcome::kRead), ElementsAre(0, 6, 5, 4, 3, 2, 1));
}

TEST_F(Order, PromotedReadsMove) {
  const auto reader = occupied();
  reader->submit(std::array{desk_.wish(1, ReadClass::kNextLayer), desk_.wish(2, ReadClass::kWarm),
                            desk_.wish(3)});
  const ReaderLoad before = reader->load();
  EXPECT_EQ(before.queued_demand_bytes, files_.block_bytes());
  EXPECT_EQ(before.queued_speculative_bytes, 2 * files_.block_bytes());
  EXPECT_EQ(before.reading_bytes, files_.block_bytes());
  reader->promote(2, ReadClass::kDemand, 1.0f);
  reader->promote(0, ReadClass::kWarm, 0.0f);     // issued: too late
  reader->promote(99, ReadClass::kDemand, 0.0f);  // unknown
  settle(*reader);
  EXPECT_EQ(reader->load().queued_demand_bytes, 2 * files_.block_bytes());
  faults_.let_all_go();
  EXPECT_THAT(tags_of(finish(*reader, 4), ReadOutcome::kRead), ElementsAre(0, 2, 3, 1));
}

TEST_F(Order, CancelledReadsComeBackUnlessIssued) {
  const auto reader = occupied();
  reader->submit(std::array{desk_.wish(1), desk_.wish(2), desk_.wish(3, ReadClass::kWarm)});
  reader->cancel(0);  // issued: too late
  reader->cancel(2);
  reader->cancel(3);
  reader->cancel(77);  // unknown
  const auto back = finish(*reader, 2);
  EXPECT_THAT(tags_of(back, ReadOutcome::kCancelled), ElementsAre(2, 3));
  EXPECT_EQ(reader->load().queued_speculative_bytes, 0);
  reader->submit(std::array{desk_.wish(2)});  // the tag is free again
  faults_.let_all_go();
  EXPECT_THAT(tags_of(finish(*reader, 3), ReadOutcome::kRead), ElementsAre(0, 1, 2));
  EXPECT_TRUE(desk_.holds(2));
}

// Guesses wait while demanded reads are queued, and never fill the drive.
TEST_F(Order, GuessesKeepTheDriveNearlyFree) {
  options_.demand_bytes_in_flight = 8 * files_.block_bytes();
  options_.speculative_bytes_in_flight = 2 * files_.block_bytes();
  const auto reader = opened(files_, options_);
  std::vector<int> guesses(20);
  for (int i = 0; i < 20; ++i) guesses[static_cast<std::size_t>(i)] = i;
  desk_.submit(*reader, guesses, ReadClass::kNextLayer);
  settle(*reader);
  EXPECT_EQ(faults_.num_issued(), 2);
  desk_.submit(*reader, std::array{30, 31, 32, 33, 34, 35, 36, 37, 38}, ReadClass::kDemand);
  settle(*reader);
  EXPECT_EQ(faults_.num_issued(), 8);  // six demanded ones beside the two guesses
  EXPECT_EQ(reader->load().reading_bytes, 8 * files_.block_bytes());
  faults_.let_go(9);  // the two guesses and seven of nine
  finish(*reader, 9);
  settle(*reader);
  EXPECT_EQ(faults_.num_issued(), 11);  // no guess beside two
  faults_.let_go(1);
  finish(*reader, 1);
  settle(*reader);
  EXPECT_EQ(faults_.num_issued(), 12);  // but beside one
  faults_.let_all_go();
  finish(*reader, 19);
  EXPECT_EQ(faults_.most_bytes_under_way(), 8 * files_.block_bytes());
}

// Whatever is done to it, everything submitted comes back once, and nothing else does.
TEST(BlockReader, EverythingComesBackOnce) {
  const TempDir dir;
  const ExtentFiles files({.dirs = {dir.path()}, .num_experts = 64, .block_bytes = 16 << 10});
  const Desk desk(files);
  const Watchdog watchdog(120s);
  for (const IoChoice io : {IoChoice::kUring, IoChoice::kPread}) {
    Faults faults;
    for (int i = 0; i < 4000; i += 7) faults.shorten(i, 8192);
    for (int i = 0; i < 4000; i += 31) faults.fail(i, EIO);
    const auto reader = opened(files, {.io = io,
                                       .demand_bytes_in_flight = 256 << 10,
                                       .speculative_bytes_in_flight = 64 << 10,
                                       .wrap_engine = faults.wrapper()});
    std::thread pinner([&] {
      for (std::size_t at = 0; at < desk.bytes().size(); at += 1 << 20) {
        static_cast<void>(reader->register_memory(desk.bytes().subspan(at, 1 << 20)));
      }
    });
    std::mt19937 random(3);
    std::set<std::uint32_t> under_way;
    std::array<std::int64_t, 3> outcomes{};
    std::array<BlockDone, 16> done;
    for (int step = 0; step < 4000 || !under_way.empty(); ++step) {
      const auto tag =
          static_cast<std::uint32_t>(random() % static_cast<unsigned>(files.num_blocks()));
      const auto read_class = static_cast<ReadClass>(random() % kNumReadClasses);
      if (step < 4000 && under_way.insert(tag).second) {
        reader->submit(std::array{desk.wish(static_cast<int>(tag), read_class)});
      } else if (step % 3 == 0) {
        reader->cancel(tag);
      } else {
        reader->promote(tag, read_class, 1.0f);
      }
      if (under_way.size() > 100 || step >= 4000) reader->wait(1ms);
      const std::size_t count = reader->reap(done);
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_EQ(under_way.erase(done[i].tag), 1) << done[i].tag;
        ++outcomes[static_cast<std::size_t>(done[i].outcome)];
        ASSERT_TRUE(done[i].outcome != ReadOutcome::kRead || desk.holds(done[i].tag));
      }
    }
    pinner.join();
    EXPECT_THAT(outcomes, ::testing::Each(Gt(0)));
    const ReaderLoad load = reader->load();
    EXPECT_EQ(load.queued_demand_bytes + load.queued_speculative_bytes + load.reading_bytes, 0);
  }
}

TEST(BlockReader, WaitReturnsAtOnceWhenNothingIsUnderWay) {
  const TempDir dir;
  const ExtentFiles files({.dirs = {dir.path()}});
  const auto reader = opened(files, {});
  const auto start = std::chrono::steady_clock::now();
  reader->wait(10s);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);
}

TEST(BlockReader, AMissingFileIsAnError) {
  const TempDir dir;
  const ExtentFiles files({.dirs = {dir.path()}});
  std::filesystem::remove(files.extent_files()[0].path);
  const auto reader = open_reader(files, {});
  ASSERT_FALSE(reader.ok());
  EXPECT_EQ(reader.error().code(), ErrorCode::kNotFound);
  EXPECT_THAT(reader.error().message(), HasSubstr("experts.bin"));
}

// Two devices: two drives. Here they are two copies of the same experts.
class TwoDrives : public ::testing::Test {
 protected:
  void SetUp() override {
    shm_ = "/dev/shm/stoker-test-" + std::to_string(::getpid());
    std::error_code error;
    std::filesystem::create_directory(shm_, error);
    struct stat a{}, b{};
    if (error || ::stat(shm_.c_str(), &a) != 0 || ::stat(dir_.path().c_str(), &b) != 0 ||
        a.st_dev == b.st_dev) {
      GTEST_SKIP() << "needs /dev/shm beside a temporary directory on another device";
    }
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(shm_, ignored);
  }
  TempDir dir_;
  std::filesystem::path shm_;
};

TEST_F(TwoDrives, BothWorkAndTheIdleOneIsTaken) {
  const ExtentFiles files({.dirs = {dir_.path(), shm_}, .num_experts = 16});
  const Desk desk(files);
  Faults faults;
  faults.hold();
  const auto reader = opened(files, {.wrap_engine = faults.wrapper()});
  EXPECT_EQ(reader->load().num_drives, 2);
  std::vector<int> blocks(64);
  for (int i = 0; i < 64; ++i) blocks[static_cast<std::size_t>(i)] = i;
  desk.submit(*reader, blocks, ReadClass::kDemand);
  faults.let_all_go();
  const auto done = finish(*reader, 64);
  std::array<int, 2> from{};
  for (const BlockDone& one : done) {
    EXPECT_EQ(one.outcome, ReadOutcome::kRead);
    EXPECT_TRUE(desk.holds(one.tag));
    ++from[static_cast<std::size_t>(one.replica)];
  }
  EXPECT_THAT(from, ElementsAre(32, 32));  // none was known to be faster
}

TEST_F(TwoDrives, ANamedReplicaIsTaken) {
  const ExtentFiles files({.dirs = {dir_.path(), shm_}});
  const Desk desk(files);
  const auto reader = opened(files, {});
  for (int replica = 0; replica < 2; ++replica) {
    BlockRead read = desk.wish(2);
    read.replica = replica;
    reader->submit(std::array{read, [&] {
                                BlockRead other = desk.wish(3);
                                other.replica = replica;
                                return other;
                              }()});
    for (const BlockDone& one : finish(*reader, 2)) EXPECT_EQ(one.replica, replica);
  }
}

}  // namespace
}  // namespace stoker::storage
