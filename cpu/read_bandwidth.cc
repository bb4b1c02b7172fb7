#include "cpu/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <span>
#include <vector>

namespace stoker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPieceBytes = 1 << 20;

}  // namespace

std::uint64_t read_through(std::span<const std::byte> memory) {
  // Wide enough sums that the loads set the pace.
  const auto* const words = reinterpret_cast<const std::uint64_t*>(memory.data());
  const std::size_t count = memory.size() / sizeof(std::uint64_t);
  std::uint64_t partial[16] = {};
  for (std::size_t i = 0; i + 16 <= count; i += 16) {
    for (int j = 0; j < 16; ++j) partial[j] += words[i + j];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t value : partial) total += value;
  return total;
}

double measure_read_bandwidth(Team& team, std::int64_t bytes, int rounds) {
  const auto pieces = static_cast<int>(bytes / kPieceBytes);
  const std::int64_t words = kPieceBytes / static_cast<std::int64_t>(sizeof(std::uint64_t));
  const std::unique_ptr<std::uint64_t[]> memory(new (std::nothrow) std::uint64_t[pieces * words]);
  if (memory == nullptr) return 0.0;
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(pieces));
  team.run(pieces, [&](int piece, int /*worker*/) {
    std::fill_n(memory.get() + piece * words, words,
                0x0123456789abcdefull + static_cast<std::uint64_t>(piece));
  });
  std::vector<double> rates;
  for (int round = 0; round < rounds; ++round) {
    const Clock::time_point start = Clock::now();
    team.run(pieces, [&](int piece, int /*worker*/) {
      sums[piece] += read_through(
          std::as_bytes(std::span(memory.get() + piece * words, static_cast<std::size_t>(words))));
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    rates.push_back(static_cast<double>(pieces) * kPieceBytes / seconds);
  }
  std::sort(rates.begin(), rates.end());
  // The sums are looked at, so that they are computed.
  return sums.empty() || sums[0] == 1 ? 0.0 : rates[rates.size() / 2];
}

}  // namespace stoker
