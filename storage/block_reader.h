// BlockReader: the ExpertReader over files. One engine and one I/O thread per drive; the I/O thread
// owns the engine and the drive's queue of reads, nothing else.
//
// The owner's calls never wait for a drive: wishes go through an inbox per drive, completions come
// back through one outbox.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/interface/expert_source.h"
#include "storage/engine.h"
#include "storage/extent.h"

namespace stoker::storage {

enum class IoChoice : std::uint8_t { kAuto, kUring, kPread };  // kAuto: io_uring if it can be had
enum class DirectChoice : std::uint8_t { kAuto, kOn, kOff };   // kAuto: direct if it can be had

struct ReaderOptions {
  IoChoice io = IoChoice::kAuto;
  DirectChoice direct = DirectChoice::kAuto;
  bool register_memory = true;
  // In flight per drive, for demanded reads (0: what the drive turns out to like, from 8 to 64 MiB)
  // and for all others. A demanded read waits at most for what the others have in flight.
  std::int64_t demand_bytes_in_flight = 0;
  std::int64_t speculative_bytes_in_flight = std::int64_t{4} << 20;
  int pread_threads = 16;  // per drive
  // Puts something between reader and engine; tests do.
  std::function<std::unique_ptr<Engine>(std::unique_ptr<Engine>)> wrap_engine{};
};

class BlockReader : public ExpertReader {
 public:
  // Fallbacks that were taken, one sentence each, for the log: each is said once. May grow when
  // memory is registered. Thread-safe.
  virtual std::vector<std::string> notices() const = 0;
  virtual std::string_view engine_name() const = 0;
  // All files are read past the page cache.
  virtual bool direct() const = 0;
};

// Opens every file of `source`, which outlives the reader. Files on one device are one drive. What
// an option insists on and the system refuses is an error; so is a file that changed its size since
// the source was opened.
//
// register_memory() waits until the I/O threads have done it; memory stays registered until the
// reader is destroyed or other memory takes its address. The reader is destroyed before the memory
// that reads go to, after the last register_memory() has returned.
Result<std::unique_ptr<BlockReader>> open_reader(const ExtentSource& source,
                                                 const ReaderOptions& options);

}  // namespace stoker::storage
