#include "gpu/factory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace stoker {
namespace {

TEST(CudaFactory, SaysWhatIsMissing) {
  EXPECT_THAT(cuda_support(), testing::StartsWith("built with"));
  if (!list_gpus().empty()) GTEST_SKIP() << "nothing is missing: " << cuda_support();
  const auto backend = make_cuda_backend({});
  ASSERT_FALSE(backend.ok());
  EXPECT_THAT(backend.error().message(), testing::HasSubstr("CUDA"));
}

TEST(CudaFactory, RefusesADeviceThatIsNotThere) {
  CudaBackendOptions options;
  options.device = static_cast<int>(list_gpus().size());
  EXPECT_FALSE(make_cuda_backend(options).ok());
}

}  // namespace
}  // namespace stoker
