// Slots for experts in device memory. Experts that are computed from slots: experts_test.cc.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "core/interface/device_slots.h"
#include "tests/gpu/cuda_test.h"
#include "tests/support/aligned_memory.h"

namespace stoker {
namespace {

using test::AlignedMemory;

class CudaSlots : public testing::Test {
 protected:
  static constexpr std::int64_t kSourceBytes = 4 << 20;

  void SetUp() override {
    if (list_gpus().empty()) GTEST_SKIP() << "no CUDA device: " << cuda_support();
    Random random(30);
    for (std::byte& byte : source_.bytes()) byte = static_cast<std::byte>(random.below(256));
  }

  static std::unique_ptr<DeviceSlots> make(int num_slots, std::int64_t slot_bytes) {
    CudaSlotsOptions options;
    options.logical = 2;
    options.num_slots = num_slots;
    options.slot_bytes = slot_bytes;
    auto made = make_cuda_slots(options);
    CHECK(made.ok(), "{}", made.error().message());
    return std::move(made).value();
  }

  // False after far too long.
  static bool comes(DeviceSlots& slots, UploadTicket ticket) {
    const auto start = std::chrono::steady_clock::now();
    while (!slots.done(ticket)) {
      if (std::chrono::steady_clock::now() - start > std::chrono::seconds(60)) return false;
      std::this_thread::yield();
    }
    return true;
  }

  // The bytes of a slot, through a backend of the same device.
  static std::vector<std::byte> read_back(const DeviceSlots& slots, int slot) {
    CudaBackendOptions options;
    options.logical = slots.device().index - 1;
    auto backend = make_cuda_backend(options);
    CHECK(backend.ok(), "{}", backend.error().message());
    std::vector<std::byte> bytes(static_cast<std::size_t>(slots.slot_bytes()));
    (*backend)->copy_out(bytes.data(), make_view(slots.slot(slot), DType::kU8, 1,
                                                 slots.slot_bytes(), slots.device()));
    EXPECT_TRUE((*backend)->finish().ok());
    return bytes;
  }

  // Uploads of any size to any place, more than can be told apart, all in one go.
  void upload_many() {
    constexpr int kSlots = 5, kUploads = 700;
    constexpr std::int64_t kSlotBytes = 300000;
    const auto slots = make(kSlots, kSlotBytes);
    std::vector<std::vector<std::byte>> expected(
        kSlots, std::vector<std::byte>(static_cast<std::size_t>(slots->slot_bytes())));
    Random random(31);
    UploadTicket last = 0;
    for (int i = 0; i < kUploads; ++i) {
      const int slot = random.below(kSlots);
      const int offset = random.below(kSlotBytes - 1);
      const int bytes = 1 + random.below(std::min<int>(kSlotBytes - offset, 100000));
      const auto src = source_.bytes().subspan(
          static_cast<std::size_t>(random.below(static_cast<int>(kSourceBytes) - bytes)),
          static_cast<std::size_t>(bytes));
      std::memcpy(expected[static_cast<std::size_t>(slot)].data() + offset, src.data(), src.size());
      const UploadTicket ticket = slots->upload(slot, offset, src);
      ASSERT_GT(ticket, last);
      last = ticket;
    }
    ASSERT_TRUE(comes(*slots, last));
    for (UploadTicket ticket = 0; ticket <= last; ++ticket) ASSERT_TRUE(slots->done(ticket));
    ASSERT_TRUE(slots->status().ok()) << slots->status().error().message();
    for (int slot = 0; slot < kSlots; ++slot) {
      ASSERT_EQ(read_back(*slots, slot), expected[static_cast<std::size_t>(slot)])
          << "slot " << slot;
    }
  }

  AlignedMemory source_{kSourceBytes};
};

TEST_F(CudaSlots, LieApartAndAligned) {
  const auto slots = make(3, 5000);
  EXPECT_EQ(slots->device(), DeviceId{3});
  EXPECT_EQ(slots->num_slots(), 3);
  EXPECT_EQ(slots->slot_bytes(), 8192);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(slots->slot(i)) % 4096, 0u);
    EXPECT_EQ(slots->slot(i), slots->slot(0) + i * 8192);
  }
  EXPECT_TRUE(slots->done(0));
  EXPECT_TRUE(slots->status().ok());
}

TEST_F(CudaSlots, HoldWhatWasUploadedLast) { upload_many(); }

TEST_F(CudaSlots, HoldWhatWasUploadedLastFromPinnedMemory) {
  const auto pinned = pin_host_memory(source_.bytes(), 0);
  ASSERT_TRUE(pinned.ok()) << pinned.error().message();
  upload_many();
}

TEST_F(CudaSlots, MayGoWhileCopiesAreUnderWay) {
  const auto pinned = pin_host_memory(source_.bytes(), 0);
  ASSERT_TRUE(pinned.ok()) << pinned.error().message();
  auto slots = make(8, kSourceBytes);
  for (int i = 0; i < 80; ++i) slots->upload(i % 8, 0, source_.bytes());
  slots.reset();
  auto again = make(1, kSourceBytes);
  ASSERT_TRUE(comes(*again, again->upload(0, 0, source_.bytes())));
  const std::vector<std::byte> got = read_back(*again, 0);
  EXPECT_TRUE(std::equal(got.begin(), got.end(), source_.bytes().begin()));
}

TEST_F(CudaSlots, MoreThanTheDeviceHoldsIsAnError) {
  CudaSlotsOptions options;
  options.num_slots = 1 << 12;
  options.slot_bytes = std::int64_t{1} << 30;
  const auto slots = make_cuda_slots(options);
  ASSERT_FALSE(slots.ok());
  EXPECT_EQ(slots.error().code(), ErrorCode::kResource) << slots.error().message();
}

}  // namespace
}  // namespace stoker
