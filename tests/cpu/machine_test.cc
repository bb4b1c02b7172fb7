#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "cpu/isa.h"
#include "cpu/machine_info.h"
#include "cpu/topology.h"

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
