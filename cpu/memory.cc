#include "cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace stoker::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kAlign = 64;

std::size_t align_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

std::byte* map_huge(std::size_t bytes) {
  // A page more than needed, so that a whole number of huge pages can be cut out.
  const std::size_t mapped = bytes + kHugePage;
  void* const raw =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(raw);
  const std::size_t head = align_up(reinterpret_cast<std::size_t>(begin), kHugePage) -
                           reinterpret_cast<std::size_t>(begin);
  if (head > 0) munmap(begin, head);
  if (kHugePage - head > 0) munmap(begin + head + bytes, kHugePage - head);
  (void)madvise(begin + head, bytes, MADV_HUGEPAGE);  // where it is refused, small pages do
  return begin + head;
}

}  // namespace

Result<Memory> Memory::create(std::size_t bytes) {
  Memory memory;
  memory.bytes_ = align_up(std::max<std::size_t>(bytes, 1), kAlign);
  if (memory.bytes_ < kHugePage) {
    memory.data_ = static_cast<std::byte*>(std::aligned_alloc(kAlign, memory.bytes_));
    if (memory.data_ != nullptr) std::memset(memory.data_, 0, memory.bytes_);
  } else {
    memory.bytes_ = align_up(memory.bytes_, kHugePage);
    memory.data_ = map_huge(memory.bytes_);
  }
  if (memory.data_ == nullptr) {
    memory.bytes_ = 0;
    return make_error(ErrorCode::kResource, "no memory for {} bytes", bytes);
  }
  return memory;
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  if (bytes_ < kHugePage) {
    std::free(data_);
  } else {
    munmap(data_, bytes_);
  }
}

void* Scratch::reserve(std::size_t bytes) {
  if (bytes > memory_.bytes()) {
    const std::size_t wanted = std::max(bytes, 2 * memory_.bytes());
    memory_ = Memory();
    Result<Memory> memory = Memory::create(wanted);
    CHECK(memory.ok(), "{} bytes of workspace", wanted);
    memory_ = std::move(memory).value();
  }
  return memory_.data();
}

}  // namespace stoker::cpu
