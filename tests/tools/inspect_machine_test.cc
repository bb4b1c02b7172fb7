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

TEST(InspectMachine, NoGpuIsSaid) {
  EXPECT_THAT(machine_to_text(MachineReport()), HasSubstr("GPU           none\n"));
}

}  // namespace
}  // namespace stoker::tools
