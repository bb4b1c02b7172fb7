#include "tools/fio.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/support/temp_dir.h"

namespace stoker::tools {
namespace {

// A path that fio would split if the colon were not escaped.
FioJob job_in(const std::filesystem::path& dir) {
  const std::filesystem::path path = dir / "a:b.bin";
  std::ofstream(path, std::ios::binary) << std::string(4 << 20, 'x');
  return {.files = {path, path}, .block_bytes = 1 << 20, .depth = 4, .seconds = 0.1};
}

TEST(Fio, ReadsWhereItIsInstalled) {
  const test::TempDir dir;
  const Result<FioResult> result = run_fio(job_in(dir.path()));
  if (!result.ok() && result.error().code() == ErrorCode::kNotFound) {
    GTEST_SKIP() << "fio is not installed";
  }
  ASSERT_TRUE(result.ok()) << result.error().message();
  EXPECT_GT(result->bytes_per_second, 0.0);
  EXPECT_GE(result->cpu_seconds_per_gb, 0.0);
}

TEST(Fio, IsNotFoundWhereItIsNot) {
  const test::TempDir dir;
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", dir.path().c_str(), 1);
  const Result<FioResult> result = run_fio(job_in(dir.path()));
  ::setenv("PATH", path.c_str(), 1);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code(), ErrorCode::kNotFound);
}

TEST(Fio, ItsFailureIsAnError) {
  const test::TempDir dir;
  FioJob job = job_in(dir.path());
  job.files = {dir.path() / "none" / "there.bin"};
  const Result<FioResult> result = run_fio(job);
  ASSERT_FALSE(result.ok());
}

}  // namespace
}  // namespace stoker::tools
