#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "cpu/isa.h"
#include "cpu/machine_info.h"
#include "cpu/memory_limit.h"
#include "cpu/topology.h"
#include "tests/support/temp_dir.h"

namespace stoker {
namespace {

namespace fs = std::filesystem;

TEST(Isa, ScalarIsAlwaysThereAndBestIsAvailable) {
  EXPECT_TRUE(isa_available(Isa::kScalar));
  EXPECT_TRUE(isa_available(best_isa()));
  EXPECT_EQ(available_isas().front(), Isa::kScalar);
}

TEST(Isa, ParseKnowsEveryAvailableName) {
  for (const Isa isa : available_isas()) EXPECT_EQ(parse_isa(isa_name(isa)).value(), isa);
  EXPECT_EQ(parse_isa("auto").value(), best_isa());
  EXPECT_EQ(parse_isa("sse9").error().code(), ErrorCode::kInvalidArgument);
  if (!isa_available(Isa::kAmx)) {
    EXPECT_EQ(parse_isa("amx").error().code(), ErrorCode::kUnsupported);
  }
}

TEST(Topology, PinOrderNamesDistinctCpusOnePerCoreFirst) {
  const Topology topology = Topology::detect();
  ASSERT_GE(topology.num_cores, 1);
  EXPECT_LE(static_cast<int>(topology.pin_order().size()), topology.num_cores);
  EXPECT_EQ(std::set<int>(topology.cpus.begin(), topology.cpus.end()).size(), topology.cpus.size());
}

TEST(MachineInfo, DetectFindsMemory) { EXPECT_GT(MachineInfo::detect().memory_bytes, 0); }

class MemoryLimit : public ::testing::Test {
 protected:
  void put(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }
  std::optional<std::int64_t> left() const {
    return memory_left_to_process((root_ / "membership").string(), (root_ / "mount").string());
  }

  test::TempDir dir_;
  fs::path root_ = dir_.path();
};

TEST_F(MemoryLimit, IsTheLeastOfAllGroupsAbove) {
  put("membership", "0::/slice/job");
  put("mount/slice/job/memory.max", "max");
  put("mount/slice/memory.max", "1000");
  put("mount/slice/memory.current", "700");
  put("mount/slice/memory.stat", "anon 600\ninactive_file 100\nactive_file 0");
  EXPECT_EQ(left(), 400);
  put("mount/slice/job/memory.max", "800");
  put("mount/slice/job/memory.current", "650");
  EXPECT_EQ(left(), 150);
  put("mount/slice/job/memory.current", "900");  // over it: nothing is left
  EXPECT_EQ(left(), 0);
}

TEST_F(MemoryLimit, OfVersion1AndOfAContainerThatSeesItsOwnGroupAsTheRoot) {
  put("membership", "9:cpuset:/\n4:memory:/docker/1234\n0::/");
  put("mount/memory/memory.limit_in_bytes", "5000");
  put("mount/memory/memory.usage_in_bytes", "1000");
  EXPECT_EQ(left(), 4000);
  put("mount/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(left(), std::nullopt);
}

TEST_F(MemoryLimit, IsNoneWhereNothingIsSaid) {
  EXPECT_EQ(left(), std::nullopt);
  put("membership", "nonsense\n0::/slice");
  put("mount/slice/memory.max", "many");
  EXPECT_EQ(left(), std::nullopt);
}

TEST(MachineInfo, DrivesAreReadFromAnyTree) {
  const fs::path root = fs::path(::testing::TempDir()) / "sys_block";
  const auto put = [&](const fs::path& path, const char* text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << "\n";
  };
  put("nvme0n1/size", "2000");
  put("nvme0n1/device/model", "Some Drive ");
  put("nvme0n1/queue/rotational", "0");
  put("sda/size", "4000");
  put("sda/queue/rotational", "1");
  put("loop0/size", "10");
  put("sr0/size", "0");
  const std::vector<BlockDrive> drives = list_drives(root.string());
  ASSERT_EQ(drives.size(), 2u);
  EXPECT_EQ(drives[0].name, "nvme0n1");
  EXPECT_EQ(drives[0].model, "Some Drive");
  EXPECT_EQ(drives[0].bytes, 2000 * 512);
  EXPECT_FALSE(drives[0].rotational);
  EXPECT_TRUE(drives[1].rotational);
  EXPECT_EQ(drives[1].model, "");
  EXPECT_TRUE(list_drives((root / "absent").string()).empty());
}

}  // namespace
}  // namespace stoker
