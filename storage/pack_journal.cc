#include "storage/pack_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/file.h"
#include "storage/write_file.h"

namespace stoker::storage {
namespace {

constexpr std::size_t kMaxJournalBytes = std::size_t{1} << 30;
constexpr std::string_view kFirstWords = "stoker-pack 1 ";

std::string line_of(const PackJournal::Unit& unit) {
  std::string line = std::to_string(unit.index);
  char separator = ' ';
  for (const std::uint64_t checksum : unit.checksums) {
    line += std::exchange(separator, ',') + hex(checksum);
  }
  return line + " " + hex(checksum(std::as_bytes(std::span(line)))) + "\n";
}

template <typename T>
bool take_number(std::string_view& text, T& value, int base) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return error == std::errc();
}

// Empty if the line is not whole.
std::optional<PackJournal::Unit> unit_of(std::string_view line) {
  PackJournal::Unit unit;
  std::string_view rest = line;
  if (!take_number(rest, unit.index, 10)) return std::nullopt;
  while (!rest.empty() && (rest.front() == ' ' || rest.front() == ',')) {
    rest.remove_prefix(1);
    if (!take_number(rest, unit.checksums.emplace_back(), 16)) return std::nullopt;
  }
  if (unit.checksums.size() < 2) return std::nullopt;
  unit.checksums.pop_back();  // the line's own
  if (line_of(unit) != std::string(line) + "\n") return std::nullopt;
  return unit;
}

}  // namespace

Result<PackJournal> PackJournal::open(const std::filesystem::path& path, const Hash128& plan,
                                      const std::string& words) {
  const std::string first = std::string(kFirstWords) + hex(plan) + " " + words + "\n";
  // 1. Nobody else. The directory is locked and not the file, which may be about to appear.
  PackJournal journal(path);
  const std::filesystem::path dir = path.parent_path();
  journal.lock_ = open_file(dir, O_RDONLY | O_DIRECTORY);
  if (!journal.lock_.is_open()) return system_error(dir, "cannot open");
  if (::flock(journal.lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return make_error(ErrorCode::kResource, "{}: another stoker is packing there; wait for it",
                      dir.string());
  }
  // 2. What it lists.
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) RETURN_IF_ERROR(write_text_file(path, first));
  journal.file_ = open_file(path, O_RDWR | O_APPEND);
  if (!journal.file_.is_open()) return system_error(path, "cannot open");
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, kMaxJournalBytes));
  if (!text.starts_with(first)) {
    const std::string_view found = std::string_view(text).substr(0, text.find('\n'));
    const std::size_t skip = kFirstWords.size() + 32 + 1;
    return make_error(ErrorCode::kInvalidArgument,
                      "{} was begun as: {}. Now asked for: {}. It can only be finished from the "
                      "same files with the same options; delete it to begin anew",
                      dir.string(),
                      found.starts_with(kFirstWords) && found.size() > skip ? found.substr(skip)
                                                                            : "something else",
                      words);
  }
  std::size_t good = first.size();
  while (true) {
    const std::size_t end = text.find('\n', good);
    if (end == std::string::npos) break;
    std::optional<Unit> unit = unit_of(std::string_view(text).substr(good, end - good));
    if (!unit) break;
    journal.done_.push_back(*std::move(unit));
    good = end + 1;
  }
  if (::ftruncate(journal.file_.get(), static_cast<off_t>(good)) != 0)
    return system_error(path, "cannot truncate");
  return journal;
}

Status PackJournal::append(std::span<const Unit> units) {
  std::string text;
  for (const Unit& unit : units) text += line_of(unit);
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t done = ::write(file_.get(), rest.data(), rest.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error(path_, "cannot write");
    rest.remove_prefix(static_cast<std::size_t>(done));
  }
  if (::fdatasync(file_.get()) != 0) return system_error(path_, "cannot sync");
  return {};
}

}  // namespace stoker::storage
