#include "storage/checksum.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace stoker::storage {
namespace {

std::vector<std::byte> sample(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 256);
  return bytes;
}

// Values of XXH3 with seed 0 that its specification gives for the empty input.
TEST(Checksum, IsXxh3) {
  EXPECT_EQ(hex(checksum({})), "2d06800538d394c2");
  EXPECT_EQ(hex(hash128(std::string_view())), "99aa06d3014798d86001c324468d497f");
}

TEST(Checksum, PiecesGiveTheSame) {
  for (const std::size_t size : {0u, 1u, 16u, 17u, 240u, 241u, 1024u, 4096u, 100'000u}) {
    const std::vector<std::byte> bytes = sample(size);
    for (const std::size_t piece : {1u, 7u, 64u, 1000u, 65'536u}) {
      Hasher hasher;
      for (std::size_t at = 0; at < size; at += piece) {
        hasher.add(std::span(bytes).subspan(at, std::min(piece, size - at)));
      }
      EXPECT_EQ(hasher.checksum(), checksum(bytes)) << size << " by " << piece;
      EXPECT_EQ(hasher.hash128(), hash128(bytes)) << size << " by " << piece;
    }
  }
}

TEST(Checksum, HexAndBack) {
  const Hash128 hash{0x0123456789abcdefu, 0xf0e1d2c3b4a59687u};
  EXPECT_EQ(hex(hash), "f0e1d2c3b4a596870123456789abcdef");
  EXPECT_EQ(hash_from_hex(hex(hash)), hash);
  EXPECT_EQ(hash_from_hex(""), std::nullopt);
  EXPECT_EQ(hash_from_hex("F0e1d2c3b4a596870123456789abcdef"), std::nullopt);
  EXPECT_EQ(hash_from_hex("f0e1d2c3b4a596870123456789abcdef0"), std::nullopt);
}

TEST(Checksum, SaysWhatDoesNotHold) {
  const std::vector<std::byte> bytes = sample(100);
  EXPECT_TRUE(check_bytes(bytes, checksum(bytes), "/store/file", 4096).ok());
  const Status bad = check_bytes(bytes, 0x12, "/store/file", 4096);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code(), ErrorCode::kCorrupt);
  EXPECT_THAT(bad.error().message(),
              ::testing::AllOf(::testing::HasSubstr("/store/file: 100 bytes at offset 4096"),
                               ::testing::HasSubstr(hex(checksum(bytes))),
                               ::testing::HasSubstr("expected 0000000000000012")));
}

}  // namespace
}  // namespace stoker::storage
