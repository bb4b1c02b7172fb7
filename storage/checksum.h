// The hashes of the packed store: XXH3, 64 bits for blocks, 128 for whole files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/base/error.h"

struct XXH3_state_s;  // of libxxhash

namespace stoker::storage {

// XXH3-64 of `bytes`.
std::uint64_t checksum(std::span<const std::byte> bytes);

// kCorrupt, with file, offset, expected and found, unless checksum(bytes) is `expected`. `offset`:
// where in `path` the bytes were read.
Status check_bytes(std::span<const std::byte> bytes, std::uint64_t expected,
                   const std::filesystem::path& path, std::int64_t offset);

struct Hash128 {
  std::uint64_t low = 0, high = 0;
  bool operator==(const Hash128&) const = default;
};
Hash128 hash128(std::span<const std::byte> bytes);
Hash128 hash128(std::string_view text);

// 32 lower-case hexadecimal digits, high half first; and back, empty for anything else.
std::string hex(const Hash128& hash);
std::optional<Hash128> hash_from_hex(std::string_view text);
// 16 lower-case hexadecimal digits.
std::string hex(std::uint64_t checksum);

// The same hashes of bytes that come in pieces.
class Hasher {
 public:
  Hasher();
  void reset();
  void add(std::span<const std::byte> bytes);
  std::uint64_t checksum() const;
  Hash128 hash128() const;

 private:
  struct FreeState {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, FreeState> state_;
};

}  // namespace stoker::storage
