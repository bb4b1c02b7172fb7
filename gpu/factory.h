// What the rest of the program sees of CUDA. Every function here exists in every build: without
// CUDA, or on a machine without a driver, they say so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "core/interface/device_slots.h"
#include "core/model/model_config.h"
#include "core/runtime/workspace.h"

namespace stoker {

// Device memory that a backend computes in beside tensors and weights, in bytes by what it is for.
// Not in it: CUDA's own context, the code of kernels and libraries. cuBLASLt is given no workspace.
struct CudaScratch {
  std::int64_t widened_weight = 0;   // rows of a weight as BF16, for prefill
  std::int64_t linear_partials = 0;  // sums of parts of a linear's columns
  std::int64_t linear_counters = 0;
  std::int64_t index_scores = 0;
  std::int64_t index_queries = 0;  // rounded as an FP8 cache wants them
  std::int64_t attention = 0;
  std::int64_t combine_slots = 0;
  std::int64_t expert_uploads = 0;  // parts that lie elsewhere
  std::int64_t expert_tables = 0;   // which rows of prefill are multiplied with which parts
  std::int64_t step_tables = 0;     // of two passes and one step before them

  std::int64_t bytes() const {
    return widened_weight + linear_partials + linear_counters + index_scores + index_queries +
           attention + combine_slots + expert_uploads + expert_tables + step_tables;
  }
  bool operator==(const CudaScratch&) const = default;
};

struct CudaBackendOptions {
  int device = 0;                    // index into list_gpus()
  int logical = 0;                   // its memory is that of DeviceId{logical + 1}
  DType activations = DType::kBf16;  // kBf16 or kF32
  KvFormat kv_format = KvFormat::kBf16;
  std::int64_t staging_bytes = 8 << 20;  // pinned, for tables of a step
  CudaScratch scratch{};                 // reserved at creation; what needs more grows on first use
  int most_graphs = 1024;                // parts of steps kept as CUDA graphs at a time; 0: none
  // Kernels start while the one before still runs, where the device can do that, and wait for it
  // only when they need what it wrote. The same bits.
  bool overlap_launches = true;
  bool measure_busy = false;  // Backend::busy_us(); for benchmarks, it costs events with timing
  // Routed experts of decode and verify on tensor cores, where activations are BF16: faster, but
  // not the arithmetic of other devices, so that output depends on where experts are computed.
  bool fast_experts = false;
};

// A backend of one GPU, or what is missing: built without CUDA, no driver, no such device, a device
// older than the kernels. Several backends may stand on one GPU, each with another `logical`.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& options);

// The most that steps need of a backend with such options (`scratch` is not read): steps within
// `limits`, no more sequences in one than `limits` has logit rows, two passes alive at a time,
// caches for `context_tokens`. Reserved, such steps allocate no device memory. Zeros where there is
// no such GPU; make_cuda_backend() says why.
CudaScratch cuda_scratch(const ModelConfig& config, WorkspaceLimits limits, int context_tokens,
                         const CudaBackendOptions& options);

// What a backend of make_cuda_backend() holds of it by now.
CudaScratch cuda_scratch_held(const Backend& backend);

// CUDA graphs that it holds by now.
int cuda_graphs_held(const Backend& backend);

// Lets every two different of these GPUs that can, copy to each other directly. Others copy through
// host memory.
Status enable_peer_access(std::span<const int> gpus);

struct CudaSlotsOptions {
  int device = 0;   // index into list_gpus()
  int logical = 0;  // as CudaBackendOptions::logical
  int num_slots = 0;
  std::int64_t slot_bytes = 0;  // rounded up to 4 KiB
};

// Where slots begin: multiples of 4 KiB.
inline constexpr std::int64_t kCudaSlotAlign = 4096;
constexpr std::int64_t cuda_slot_aligned(std::int64_t bytes) {
  return (bytes + kCudaSlotAlign - 1) / kCudaSlotAlign * kCudaSlotAlign;
}
// Of the allocation for all of them; of no slots: 0.
constexpr std::int64_t cuda_slots_bytes(std::int64_t num_slots, std::int64_t slot_bytes) {
  return num_slots == 0 ? 0 : num_slots * cuda_slot_aligned(slot_bytes) + kCudaSlotAlign;
}

// Slots in the memory of one GPU, in one allocation, filled by a stream of their own: beside
// everything else if `src` of an upload is pinned (pin_host_memory). From other memory an upload
// first goes through the driver's buffers, and the call may take as long as the copy.
Result<std::unique_ptr<DeviceSlots>> make_cuda_slots(const CudaSlotsOptions& options);

// Host memory of somebody else that is registered with the driver for as long as this lives. To be
// destroyed before the memory is given back, and after all copies to and from it. Only moves.
class PinnedHostMemory {
 public:
  using Piece = std::unique_ptr<void, void (*)(void*)>;  // its address, and how to unregister it

  PinnedHostMemory() = default;
  PinnedHostMemory(std::vector<Piece> pieces, std::int64_t bytes)
      : pieces_(std::move(pieces)), bytes_(bytes) {}
  PinnedHostMemory(PinnedHostMemory&& other) noexcept
      : pieces_(std::move(other.pieces_)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedHostMemory& operator=(PinnedHostMemory&& other) noexcept {
    pieces_ = std::move(other.pieces_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  std::int64_t bytes() const { return bytes_; }
  int num_pieces() const { return static_cast<int>(pieces_.size()); }

 private:
  std::vector<Piece> pieces_;
  std::int64_t bytes_ = 0;
};

// Memory is registered in pieces of at most this, from its beginning on. No copy may reach from one
// piece into the next.
inline constexpr std::int64_t kPinnedPieceBytes = std::int64_t{1} << 30;

// Registers whole pages of host memory, for all GPUs; `device` names the one that the driver does
// it with. Touches every page, so it takes a while for much memory; any thread may do it. On error
// nothing stays registered. Errors: not whole pages, registered already, more than the system
// locks.
Result<PinnedHostMemory> pin_host_memory(std::span<std::byte> memory, int device);

inline constexpr int kOldestComputeMajor = 8;  // that has kernels

struct GpuInfo {
  std::string name;
  std::string bus_id;  // PCI, "0000:01:00.0"
  std::int64_t total_bytes = 0;
  int compute_major = 0, compute_minor = 0;
  int num_multiprocessors = 0;
  std::string fault;  // why the driver says nothing of it; empty: it does

  // Whether backends can run on it, as far as this says. open_gpu() knows the rest.
  Status usable() const;
};

inline Status GpuInfo::usable() const {
  if (!fault.empty()) return Error(ErrorCode::kIo, fault);
  if (compute_major >= kOldestComputeMajor) return {};
  return make_error(ErrorCode::kUnsupported,
                    "{} has compute capability {}.{}; the kernels need {}.0 or newer", name,
                    compute_major, compute_minor, kOldestComputeMajor);
}

// The GPUs that the driver shows, in its order. Empty without CUDA, driver or device. Takes no
// memory of them: none is opened.
std::vector<GpuInfo> list_gpus();

// Opens a GPU, which takes some hundred MB of it for as long as the program runs; says what is free
// then, or why backends cannot run on it.
Result<std::int64_t> open_gpu(int device);

// One sentence: built with which CUDA or without, and which driver is there or what is missing.
std::string cuda_support();

}  // namespace stoker
