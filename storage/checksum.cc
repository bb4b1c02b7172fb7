#include "storage/checksum.h"

#include <fmt/format.h>

#include <new>

// The library's own code is compiled for the oldest processor; the dispatching entry points take
// AVX2 or AVX-512 where they are, which counts: every byte that a kernel reads is hashed once.
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

namespace stoker::storage {
namespace {

Hash128 from_xxh(const XXH128_hash_t& hash) { return {hash.low64, hash.high64}; }

// -1 for anything but a lower-case hexadecimal digit.
int digit(char c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Status check_bytes(std::span<const std::byte> bytes, std::uint64_t expected,
                   const std::filesystem::path& path, std::int64_t offset) {
  const std::uint64_t found = checksum(bytes);
  if (found == expected) return {};
  return make_error(
      ErrorCode::kCorrupt,
      "{}: {} bytes at offset {} have checksum {}, expected {}; `stoker verify` lists "
      "everything that is bad; replace the file from a good copy, or pack again",
      path.string(), bytes.size(), offset, hex(found), hex(expected));
}

Hash128 hash128(std::span<const std::byte> bytes) {
  return from_xxh(XXH3_128bits(bytes.data(), bytes.size()));
}

Hash128 hash128(std::string_view text) { return hash128(std::as_bytes(std::span(text))); }

std::string hex(std::uint64_t checksum) { return fmt::format("{:016x}", checksum); }

std::string hex(const Hash128& hash) { return hex(hash.high) + hex(hash.low); }

std::optional<Hash128> hash_from_hex(std::string_view text) {
  if (text.size() != 32) return std::nullopt;
  Hash128 hash;
  for (const char c : text) {
    const int value = digit(c);
    if (value < 0) return std::nullopt;
    hash.high = hash.high << 4 | hash.low >> 60;
    hash.low = hash.low << 4 | static_cast<std::uint64_t>(value);
  }
  return hash;
}

// One state serves both widths: they differ in the last step alone.
Hasher::Hasher() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  reset();
}

void Hasher::FreeState::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Hasher::reset() { XXH3_64bits_reset(state_.get()); }
void Hasher::add(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}
std::uint64_t Hasher::checksum() const { return XXH3_64bits_digest(state_.get()); }
Hash128 Hasher::hash128() const { return from_xxh(XXH3_128bits_digest(state_.get())); }

}  // namespace stoker::storage
