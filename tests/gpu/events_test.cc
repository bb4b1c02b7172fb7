// Events of a CUDA backend.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/gpu/cuda_test.h"

namespace stoker {
namespace {

class CudaEvents : public testing::Test {
 protected:
  void SetUp() override {
    if (list_gpus().empty()) GTEST_SKIP() << "no CUDA device: " << cuda_support();
    auto made = make_cuda_backend({});
    ASSERT_TRUE(made.ok()) << made.error().message();
    backend = std::move(made).value();
  }

  // As a driver thread waits; false after far too long.
  bool comes(Event event) {
    const auto start = std::chrono::steady_clock::now();
    while (!backend->done(event)) {
      if (std::chrono::steady_clock::now() - start > std::chrono::seconds(60)) return false;
      std::this_thread::yield();
    }
    return true;
  }

  std::unique_ptr<Backend> backend;
};

TEST_F(CudaEvents, NoneIsDone) { EXPECT_TRUE(backend->done(Event{})); }

TEST_F(CudaEvents, ComesWithNothingBeforeIt) {
  EXPECT_TRUE(comes(backend->record()));
  EXPECT_TRUE(backend->status().ok());
}

TEST_F(CudaEvents, AreDoneInOrder) {
  constexpr int kEvents = 1000;
  const Tensor device = backend->allocate(DType::kF32, 1, 1 << 20).value();
  const Tensor host = backend->allocate_host(DType::kF32, 1, 1 << 20).value();
  std::vector<Event> events;
  for (int i = 0; i < kEvents; ++i) {
    if (i % 10 == 0) backend->copy_in(device.view(), host.view().data);
    const Event event = backend->record();
    ASSERT_GT(event.ticket, events.empty() ? 0 : events.back().ticket);
    events.push_back(event);
  }
  EXPECT_TRUE(comes(events[kEvents / 2]));
  EXPECT_TRUE(backend->done(events.front()));
  EXPECT_TRUE(comes(events.back()));
  for (const Event event : events) ASSERT_TRUE(backend->done(event));
  EXPECT_TRUE(backend->finish().ok());
}

// What lies in a mailbox is there when the event is.
TEST_F(CudaEvents, MailboxesAreFilledBeforeTheirEvent) {
  constexpr int kWords = 5000;
  const Tensor device = backend->allocate(DType::kI32, 1, kWords).value();
  const Tensor from = backend->allocate_host(DType::kI32, 1, kWords).value();
  const Tensor mailbox = backend->allocate_host(DType::kI32, 1, kWords).value();
  auto* const src = from.view().row<std::int32_t>(0);
  const auto* const dst = mailbox.view().row<std::int32_t>(0);
  for (std::int32_t round = 1; round <= 2000; ++round) {
    for (int i = 0; i < kWords; ++i) src[i] = round + i;
    backend->copy_in(device.view(), src);
    backend->copy_out(mailbox.view().data, device.view());
    ASSERT_TRUE(comes(backend->record()));
    for (int i = 0; i < kWords; ++i) ASSERT_EQ(dst[i], round + i) << "round " << round;
  }
  EXPECT_TRUE(backend->status().ok());
}

TEST_F(CudaEvents, AreDoneAfterFinish) {
  const Tensor device = backend->allocate(DType::kF32, 1, 1 << 22).value();
  for (int i = 0; i < 20; ++i) backend->copy(device.view(), device.view());
  const Event event = backend->record();
  ASSERT_TRUE(backend->finish().ok());
  EXPECT_TRUE(comes(event));
}

}  // namespace
}  // namespace stoker
