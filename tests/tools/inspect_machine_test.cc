#include "tools/inspect_machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stoker::tools {
namespace {

using testing::HasSubstr;

TEST(InspectMachine, GpusHaveTheNumbersOfDevices) {
  MachineReport report;
  for (const char* const name : {"first", "second"}) report.gpus.emplace_back().name = name;
  const std::string text = machine_to_text(report);
  EXPECT_THAT(text, HasSubstr("GPU 0         first, "));
  EXPECT_THAT(text, HasSubstr("GPU 1         second, "));
  EXPECT_THAT(to_json_text(machine_to_json(report)),
              testing::AllOf(HasSubstr(R"({"index": 0, "name": "first")"),
                             HasSubstr(R"({"index": 1, "name": "second")")));
}

TEST(InspectMachine, AGpuThatCannotBeUsedIsListedWithTheReason) {
  MachineReport report;
  GpuInfo& silent = report.gpus.emplace_back();
  silent.name = "unknown";
  silent.fault = "it fell off the bus";
  GpuInfo& old = report.gpus.emplace_back();
  old.name = "old";
  old.compute_major = 7;
  const std::string text = machine_to_text(report);
  EXPECT_THAT(text, HasSubstr("GPU 0         unknown; not usable: it fell off the bus\n"));
  EXPECT_THAT(text, HasSubstr("; not usable: old has compute capability 7.0; the kernels need"));
  EXPECT_THAT(to_json_text(machine_to_json(report)),
              HasSubstr(R"({"index": 0, "name": "unknown", "usable": false, )"
                        R"("why_not": "it fell off the bus"})"));
}

TEST(InspectMachine, NoGpuIsSaid) {
  EXPECT_THAT(machine_to_text(MachineReport()), HasSubstr("GPU           none\n"));
}

}  // namespace
}  // namespace stoker::tools
