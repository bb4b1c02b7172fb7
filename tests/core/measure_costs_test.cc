#include "core/runtime/measure_costs.h"

#include <gtest/gtest.h>

#include "cpu/reference_backend.h"
#include "tests/support/device_backend.h"
#include "tests/support/memory_model.h"
#include "tests/support/published_configs.h"

namespace stoker {
namespace {

using test::DeviceBackend;
using test::MemoryExperts;

// Moves on by a microsecond whenever it is asked.
class CountingClock final : public Clock {
 public:
  std::int64_t now_us() const override { return ++now_us_; }

 private:
  mutable std::int64_t now_us_ = 0;
};

class Unreadable final : public MemoryExperts {
 public:
  using MemoryExperts::MemoryExperts;
  Status read(ExpertId id, std::byte* /*dst*/) const override {
    return make_error(ErrorCode::kIo, "expert {} is out of reach", id.expert);
  }
};

class MeasureCostsTest : public testing::Test {
 protected:
  ModelConfig config_ = ModelConfig::parse(test::tiny_config()).value();
  MemoryExperts experts_{config_};
  ReferenceBackend host_;
  DeviceBackend first_{std::make_unique<ReferenceBackend>(), DeviceId{1}};
  DeviceBackend second_{std::make_unique<ReferenceBackend>(), DeviceId{2}};
  std::vector<CostSubjects::Device> devices_ = {{&first_, 0}, {&second_, 0}};
};

TEST_F(MeasureCostsTest, EveryProcessorIsMeasuredWithExpertsInItsOwnMemory) {
  const ExpertCosts costs =
      measure_costs(config_, experts_, {&host_, devices_}, SteadyClock()).value();
  EXPECT_GT(costs.host().of(1), 0.0);
  for (int device = 0; device < 2; ++device) {
    EXPECT_GT(costs.device(device).of(1), 0.0);
    EXPECT_GT(costs.upload_us(device, experts_.expert_bytes(1)), 0.0);
  }
  EXPECT_GT(first_.num_experts_parts(), 0);
  EXPECT_EQ(first_.num_uploaded_parts(), 0);
}

TEST_F(MeasureCostsTest, TimesAreThoseOfTheClock) {
  // Between two readings nothing passes but the reading itself: 1 µs for 8 experts, whatever their
  // rows.
  const ExpertCosts costs =
      measure_costs(config_, experts_, {&host_, devices_}, CountingClock()).value();
  const double one = 1.0 / std::min(8, config_.n_routed_experts);
  EXPECT_DOUBLE_EQ(costs.host().of(1), one);
  EXPECT_DOUBLE_EQ(costs.host().of(4), one);
  EXPECT_DOUBLE_EQ(costs.device(1).of(4), one);
  EXPECT_NEAR(costs.upload_us(0, experts_.expert_bytes(1)), one, 1e-9);
}

TEST_F(MeasureCostsTest, FewerExpertsWhereMemoryIsShort) {
  devices_[0].most_bytes = 3 * experts_.expert_bytes(1) + 5;
  const ExpertCosts costs =
      measure_costs(config_, experts_, {nullptr, devices_}, CountingClock()).value();
  EXPECT_DOUBLE_EQ(costs.host().of(1), 0.0);  // there is none
  EXPECT_NEAR(costs.device(0).of(1), 1.0 / 3, 1e-9);
  EXPECT_NEAR(costs.device(1).of(1), 1.0 / 8, 1e-9);
}

TEST_F(MeasureCostsTest, AnErrorOfTheSourceIsSaid) {
  const auto costs = measure_costs(config_, Unreadable(config_), {&host_, {}}, SteadyClock());
  ASSERT_FALSE(costs.ok());
  EXPECT_EQ(costs.error().code(), ErrorCode::kIo);
  EXPECT_NE(costs.error().message().find("expert 0 is out of reach"), std::string::npos);
}

}  // namespace
}  // namespace stoker
