// Registers host memory of somebody else with the driver.
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>

#include "gpu/device.h"
#include "gpu/error.h"
#include "gpu/factory.h"

namespace stoker {
namespace {

// A failing release has nowhere to go; what it would say shows up in the next call.
void unregister(void* memory) { (void)cudaHostUnregister(memory); }

}  // namespace

Result<PinnedHostMemory> pin_host_memory(std::span<std::byte> memory, int device) {
  RETURN_IF_ERROR(gpu::check_gpu(device));
  const auto bytes = static_cast<std::int64_t>(memory.size());
  const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory.data()));
  if (address % page != 0 || bytes % page != 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "pinning {} bytes at {:#x}, which are not whole pages of {}", bytes, address,
                      page);
  }
  RETURN_IF_ERROR(gpu::use_device(device));
  std::vector<PinnedHostMemory::Piece> pieces;
  for (std::int64_t begin = 0; begin < bytes; begin += kPinnedPieceBytes) {
    const std::int64_t size = std::min(kPinnedPieceBytes, bytes - begin);
    std::byte* const piece = memory.data() + begin;
    RETURN_IF_ERROR(gpu::cuda_status(cudaHostRegister(piece, static_cast<std::size_t>(size),
                                                      cudaHostRegisterPortable),
                                     "registering host memory"),
                    "pinning bytes [{}, {}) of {}", begin, begin + size, bytes);
    pieces.emplace_back(piece, unregister);
  }
  return PinnedHostMemory(std::move(pieces), bytes);
}

}  // namespace stoker
