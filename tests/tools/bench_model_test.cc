#include "tools/bench_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "tests/support/temp_dir.h"
#include "tests/tools/fake_gpus.h"

namespace stoker::tools {
namespace {

class BenchModelTest : public testing::Test {
 protected:
  void SetUp() override {
    flags_.model.model = STOKER_SOURCE_DIR "/models/ember";
    if (!std::filesystem::exists(flags_.model.model + "/config.json")) {
      GTEST_SKIP() << "models/ember is not there";
    }
    ::setenv("XDG_CACHE_HOME", dir_.path().c_str(), 1);
    flags_.tokens = 4;
    flags_.rounds = 2;
    flags_.json = true;
  }

  nlohmann::json run(const Gpus* gpus = nullptr) {
    testing::internal::CaptureStdout();
    const Result<int> status = bench_model(flags_, gpus);
    const std::string out = testing::internal::GetCapturedStdout();
    EXPECT_TRUE(status.ok()) << status.error().message();
    return nlohmann::json::parse(out);
  }

  test::TempDir dir_;
  ModelBenchFlags flags_;
};

TEST_F(BenchModelTest, SitesAreComparedInTurn) {
  const test::FakeGpus gpus({std::int64_t{1} << 30});
  flags_.model.backend = "cuda";
  flags_.compare_sites = true;
  const nlohmann::json report = run(&gpus);
  EXPECT_EQ(report["expert_arithmetic"], "defined");
  for (const char* const site : {"site_host", "site_device", "host_1_4", "host_1_2", "host_3_4"}) {
    ASSERT_TRUE(report.contains(site)) << report.dump(2);
    const nlohmann::json& figures = report[site];
    const auto share = [&](const char* who) { return figures[who]["median"].get<double>(); };
    EXPECT_NEAR(share("on_device") + share("uploaded") + share("on_host"), 1.0, 0.05);
    EXPECT_TRUE(report.contains(std::string("auto_over_") + site));
  }
  EXPECT_EQ(report["site_host"]["uploaded"]["most"], 0.0);
  EXPECT_EQ(report["site_device"]["on_host"]["most"], 0.0);
}

// The number after `words` in the message of a refusal.
std::int64_t number_after(const Result<int>& status, const std::string& words) {
  if (status.ok()) return 0;
  const std::string& message = status.error().message();
  const std::size_t at = message.find(words);
  EXPECT_NE(at, std::string::npos) << message;
  return at == std::string::npos ? 0 : std::stoll(message.substr(at + words.size()));
}

TEST_F(BenchModelTest, TheContextThatARefusalNamesFits) {
  const test::FakeGpus gpus({std::int64_t{1} << 30});
  flags_.model.backend = "cuda";
  flags_.model.devices = {0};
  flags_.model.context_flag = {"--context"};
  flags_.context = 1000;
  flags_.tokens = 100;
  flags_.rounds = 1;
  flags_.model.vram = "1MiB";
  const std::int64_t enough = number_after(bench_model(flags_, &gpus), "give it at least ");
  flags_.model.vram = std::to_string(enough - 1);
  const std::int64_t fits = number_after(bench_model(flags_, &gpus), "shorten the context (");
  EXPECT_GT(fits, 900);
  EXPECT_LT(fits, 1000);
  flags_.context = static_cast<int>(fits);
  run(&gpus);
}

TEST_F(BenchModelTest, WhatCannotBeComparedIsRefused) {
  flags_.compare_sites = true;
  Result<int> status = bench_model(flags_);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message(), testing::HasSubstr("--compare-sites needs --backend cuda"));
  flags_.compare_prefetch = true;
  status = bench_model(flags_);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().message(), testing::HasSubstr("one at a time"));
}

}  // namespace
}  // namespace stoker::tools
