// PackJournal: which units of a store in the making are durable. Lines of text; a line counts if
// its own checksum holds, and everything from the first that does not is cut off: a kill tears the
// last one.
//
//   stoker-pack 1 <hash of the plan> <the plan in words>
//   <unit> <checksum>,<checksum>,... <checksum of the line so far>
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/descriptor.h"
#include "core/base/error.h"
#include "storage/checksum.h"

namespace stoker::storage {

// Its name, in the directory of the store in the making.
inline constexpr const char* kJournalFile = "pack.journal";

// One process at a time: the journal's directory is locked while it is open. Not thread-safe.
class PackJournal {
 public:
  struct Unit {
    std::int64_t index = 0;
    std::vector<std::uint64_t> checksums;
  };

  // Opens the journal, or begins one. A journal of another plan is an error that names both.
  static Result<PackJournal> open(const std::filesystem::path& path, const Hash128& plan,
                                  const std::string& words);

  // What it listed when it was opened.
  const std::vector<Unit>& done() const { return done_; }
  // Lists units; they are durable before this, and listed durably after it.
  Status append(std::span<const Unit> units);

 private:
  explicit PackJournal(std::filesystem::path path) : path_(std::move(path)) {}

  std::filesystem::path path_;
  Descriptor lock_;  // of the directory
  Descriptor file_;
  std::vector<Unit> done_;
};

}  // namespace stoker::storage
