#include "core/base/error.h"

#include <gtest/gtest.h>

#include <memory>

namespace stoker {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return make_error(ErrorCode::kInvalidArgument, "{} is odd", n);
  return n / 2;
}

Result<int> quarter(int n) {
  ASSIGN_OR_RETURN(int h, half(n));
  ASSIGN_OR_RETURN(int q, half(h), "quartering {}", n);
  return q;
}

Status even(int n) {
  RETURN_IF_ERROR(half(n).ok() ? Status() : Status(half(n).error()), "checking");
  return {};
}

TEST(Result, CarriesAValueOrAnErrorWithContext) {
  EXPECT_EQ(quarter(8).value(), 2);
  auto odd = quarter(6);
  ASSERT_FALSE(odd.ok());
  EXPECT_EQ(odd.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(odd.error().message(), "quartering 6: 3 is odd");
  EXPECT_EQ(quarter(5).error().message(), "5 is odd");
  EXPECT_TRUE(even(2).ok());
  EXPECT_EQ(even(1).error().message(), "checking: 1 is odd");
}

TEST(Result, MovesWhatOnlyMoves) {
  Result<std::unique_ptr<int>> r = std::make_unique<int>(7);
  std::unique_ptr<int> p = std::move(r).value();
  EXPECT_EQ(*p, 7);
}

TEST(ResultDeathTest, ValueOfAnErrorIsOurMistake) {
  EXPECT_DEATH((void)half(3).value(), "3 is odd");
}

}  // namespace
}  // namespace stoker
