#include "gpu/factory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/published_configs.h"

namespace stoker {
namespace {

template <typename T>
std::string message_of(const Result<T>& result) {
  return result.ok() ? "" : result.error().message();
}

TEST(CudaFactory, SaysWhatIsMissing) {
  EXPECT_THAT(cuda_support(), testing::StartsWith("built with"));
  if (!list_gpus().empty()) GTEST_SKIP() << "nothing is missing: " << cuda_support();
  const auto backend = make_cuda_backend({});
  ASSERT_FALSE(backend.ok());
  EXPECT_THAT(backend.error().message(), testing::HasSubstr("CUDA"));
}

TEST(CudaFactory, RefusesADeviceThatIsNotThere) {
  const int gpu = static_cast<int>(list_gpus().size());
  CudaBackendOptions options;
  options.device = gpu;
  EXPECT_FALSE(make_cuda_backend(options).ok());
  std::vector<std::byte> memory(1);
  EXPECT_THAT(message_of(make_cuda_slots({gpu, 0, 1, 4096})), testing::HasSubstr("CUDA"));
  EXPECT_THAT(message_of(pin_host_memory(memory, gpu)), testing::HasSubstr("CUDA"));
  EXPECT_THAT(message_of(enable_peer_access({&gpu, 1})), testing::HasSubstr("CUDA"));
  const auto config = ModelConfig::parse(test::tiny_config());
  EXPECT_EQ(cuda_scratch(config.value(), {16, 16}, 1024, options), CudaScratch{});
}

TEST(CudaFactory, CountsAllScratch) {
  const CudaScratch scratch{1,      10,      100,      1000,      10000,
                            100000, 1000000, 10000000, 100000000, 1000000000};
  EXPECT_EQ(scratch.bytes(), 1111111111);
}

TEST(CudaFactory, GivesPinnedMemoryBackOnce) {
  static int num_given_back;
  num_given_back = 0;
  int memory[2] = {};
  const auto give_back = [](void*) { ++num_given_back; };
  std::vector<PinnedHostMemory::Piece> pieces;
  for (int& piece : memory) pieces.emplace_back(&piece, give_back);
  PinnedHostMemory pinned(std::move(pieces), 8);
  PinnedHostMemory moved = std::move(pinned);
  EXPECT_EQ(moved.num_pieces(), 2);
  EXPECT_EQ(num_given_back, 0);
  pinned = PinnedHostMemory();
  EXPECT_EQ(num_given_back, 0);
  moved = PinnedHostMemory();
  EXPECT_EQ(num_given_back, 2);
}

}  // namespace
}  // namespace stoker
