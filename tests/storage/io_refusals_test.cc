// What a system can refuse the reader, refused for real: io_uring by a seccomp filter, as
// containers do; locked memory by its limit; direct I/O by a file system that has none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <functional>
#include <thread>

#include "storage/block_reader.h"
#include "tests/support/aligned_memory.h"
#include "tests/support/extent_files.h"
#include "tests/support/temp_dir.h"
#include "tests/support/watchdog.h"

namespace stoker::storage {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

using test::AlignedMemory;
using test::ExtentFiles;
using test::TempDir;
using test::Watchdog;

// In a thread of its own, since what is taken from a thread does not come back. Threads that it
// starts are bound as well.
void in_thread(const std::function<void()>& body) { std::thread(body).join(); }

bool forbid_io_uring() {
  std::array<sock_filter, 4> program = {{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_uring_setup},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  }};
  sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

// Whoever may lock memory is not bound by the limit.
void give_up_locking() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  CHECK(::syscall(SYS_capget, &header, data.data()) == 0);
  data[0].effective &= ~(1u << CAP_IPC_LOCK);
  CHECK(::syscall(SYS_capset, &header, data.data()) == 0);
}

class LockedMemoryLimit {
 public:
  explicit LockedMemoryLimit(rlim_t bytes) {
    CHECK(::getrlimit(RLIMIT_MEMLOCK, &before_) == 0);
    const rlimit now{bytes, before_.rlim_max};
    CHECK(::setrlimit(RLIMIT_MEMLOCK, &now) == 0);
  }
  ~LockedMemoryLimit() { ::setrlimit(RLIMIT_MEMLOCK, &before_); }

 private:
  rlimit before_{};
};

void expect_reads(BlockReader& reader, const ExtentFiles& files, std::span<std::byte> memory) {
  const Watchdog watchdog(60s);
  BlockRead read;
  read.id = files.id_of(0);
  read.dst = memory.data();
  reader.submit({&read, 1});
  std::array<BlockDone, 1> done;
  while (reader.reap(done) == 0) reader.wait(100ms);
  EXPECT_EQ(done[0].outcome, ReadOutcome::kRead);
  EXPECT_TRUE(files.holds(0, memory));
}

TEST(IoRefusals, WithoutIoUringThreadsRead) {
  const TempDir dir;
  const ExtentFiles files({.dirs = {dir.path()}});
  const AlignedMemory memory(files.block_bytes());
  in_thread([&] {
    if (!forbid_io_uring()) GTEST_SKIP() << "no seccomp filters here";
    const auto reader = open_reader(files, {});
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    EXPECT_EQ((*reader)->engine_name(), "pread");
    EXPECT_THAT((*reader)->notices(),
                ElementsAre(AllOf(HasSubstr("refuses io_uring (Operation not permitted)"),
                                  HasSubstr("16 threads"))));
    expect_reads(**reader, files, memory.bytes());

    const auto insisted = open_reader(files, {.io = IoChoice::kUring});
    ASSERT_FALSE(insisted.ok());
    EXPECT_EQ(insisted.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(insisted.error().message(), HasSubstr("--io auto"));
  });
}

TEST(IoRefusals, WithoutLockedMemoryItReadsUnregistered) {
  const TempDir dir;
  const ExtentFiles files({.dirs = {dir.path()}});
  const AlignedMemory memory(8 << 20);
  const LockedMemoryLimit limit(1 << 20);
  in_thread([&] {
    give_up_locking();
    const auto reader = open_reader(files, {.io = IoChoice::kUring});
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    // Twice refused, once said.
    EXPECT_FALSE((*reader)->register_memory(memory.bytes()).ok());
    EXPECT_FALSE((*reader)->register_memory(memory.bytes()).ok());
    EXPECT_THAT((*reader)->notices(),
                ElementsAre(AllOf(HasSubstr("1024 KiB"), HasSubstr("ulimit -l"),
                                  HasSubstr("LimitMEMLOCK"))));
    expect_reads(**reader, files, memory.bytes());
  });
}

// sysfs has no direct I/O; where it shows the kernel's types, it has a file to read.
class KernelTypes final : public ExtentSource {
 public:
  KernelTypes() {
    std::error_code error;
    const std::filesystem::path path = "/sys/kernel/btf/vmlinux";
    const auto size = std::filesystem::file_size(path, error);
    if (!error) files_.push_back({path, static_cast<std::int64_t>(size)});
  }
  const std::vector<ExtentFile>& extent_files() const override { return files_; }
  int extents(ExpertId /*id*/, int block, int replica, std::span<Extent> out) const override {
    if (replica > 0) return 0;
    out[0] = {0, block * kExtentAlign, kExtentAlign, 0};
    return 1;
  }

 private:
  std::vector<ExtentFile> files_;
};

TEST(IoRefusals, WithoutDirectIoItReadsThroughThePageCache) {
  const KernelTypes files;
  if (files.extent_files().empty()) GTEST_SKIP() << "no /sys/kernel/btf/vmlinux here";
  const auto reader = open_reader(files, {});
  ASSERT_TRUE(reader.ok()) << reader.error().message();
  EXPECT_FALSE((*reader)->direct());
  EXPECT_THAT((*reader)->notices(),
              ElementsAre(HasSubstr("/sys/kernel/btf: the file system refuses direct I/O")));

  const auto insisted = open_reader(files, {.direct = DirectChoice::kOn});
  ASSERT_FALSE(insisted.ok());
  EXPECT_EQ(insisted.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(insisted.error().message(), HasSubstr("--direct auto"));
}

TEST(IoRefusals, ATmpfsIsRead) {
  const std::filesystem::path dir = "/dev/shm/stoker-refusals-" + std::to_string(::getpid());
  std::error_code error;
  std::filesystem::create_directory(dir, error);
  if (error) GTEST_SKIP() << "no /dev/shm here";
  {
    const ExtentFiles files({.dirs = {dir}});
    const AlignedMemory memory(files.block_bytes());
    const auto reader = open_reader(files, {});  // direct or not, as this kernel has it
    ASSERT_TRUE(reader.ok()) << reader.error().message();
    expect_reads(**reader, files, memory.bytes());
  }
  std::filesystem::remove_all(dir, error);
}

}  // namespace
}  // namespace stoker::storage
