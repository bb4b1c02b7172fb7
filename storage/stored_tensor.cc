#include "storage/stored_tensor.h"

namespace stoker::storage {
namespace {

// The first value whose exponent field is all ones.
template <typename T>
std::int64_t first_with(const std::byte* bytes, std::int64_t count, T exponent_mask) {
  const T* values = reinterpret_cast<const T*>(bytes);
  // The common case is a scan without exits and with an accumulator as wide as the values: so it
  // vectorises to a compare and an or, at the speed of memory. (A bool cost ten times as much.)
  T any = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    any |= static_cast<T>((values[i] & exponent_mask) == exponent_mask ? -1 : 0);
  }
  if (any == 0) return -1;
  std::int64_t i = 0;
  while ((values[i] & exponent_mask) != exponent_mask) ++i;
  return i;
}

}  // namespace

std::int64_t first_not_finite(StoredType type, const std::byte* values, std::int64_t count) {
  switch (type) {
    case StoredType::kF32:
      return first_with<std::uint32_t>(values, count, 0x7f800000u);
    case StoredType::kF16:
      return first_with<std::uint16_t>(values, count, 0x7c00u);
    case StoredType::kBf16:
      return first_with<std::uint16_t>(values, count, 0x7f80u);
    case StoredType::kF8E4m3:
      return first_with<std::uint8_t>(values, count, 0x7fu);  // E4M3FN: NaN alone
    default:
      return -1;
  }
}

}  // namespace stoker::storage
