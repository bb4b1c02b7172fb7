#include "storage/store_verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "core/base/file.h"
#include "quant/expert_block.h"
#include "storage/aligned_bytes.h"
#include "storage/checksum.h"
#include "storage/data_file.h"
#include "storage/expert_dirs.h"
#include "storage/safetensors.h"
#include "storage/stream_file.h"

namespace stoker::storage {
namespace {

constexpr std::int64_t kRunBytes = 16 << 20;  // read at once

// Bytes that one checksum covers.
struct Stretch {
  std::int64_t offset = 0, bytes = 0;
  std::uint64_t expected = 0;
  int tensor = 0, index = 0;  // which of the file's tensors, and which stretch of it
};

// A file that is open, and what is known to cover it.
struct OpenFile {
  const ManifestFile* listed = nullptr;
  StreamFile file;
  std::vector<std::string> tensors;
  std::vector<Stretch> stretches;  // in file order; none for files with one hash
};

// Consecutive stretches of a file that one thread reads.
struct Run {
  std::size_t file = 0, begin = 0, end = 0;
};

class Verifier {
 public:
  Verifier(const Manifest& manifest, const ModelConfig* config, const ProgressFn& progress)
      : manifest_(manifest), config_(config), progress_(progress) {}

  void open(const ManifestFile& listed, const std::filesystem::path& path);
  void run();
  VerifyReport& report() { return report_; }

 private:
  void add_bad(const std::filesystem::path& file, std::int64_t offset, std::int64_t bytes,
               std::string problem) {
    const std::lock_guard lock(mutex_);
    report_.bad.push_back({file, offset, bytes, std::move(problem)});
  }
  void open_data_file(OpenFile& open);
  Status read_cover(OpenFile& open, const SafetensorsHeader& header, const std::string& table);
  std::vector<std::int64_t> stretch_bytes(const SafetensorsEntry& entry) const;
  void check_whole(const OpenFile& open, std::byte* buffer);
  void check_run(const OpenFile& open, const Run& run, std::byte* buffer);
  Status stream(const StreamFile& file, std::int64_t offset, std::int64_t bytes, std::byte* buffer,
                Hasher& hasher);
  void advance(std::int64_t bytes);

  const Manifest& manifest_;
  const ModelConfig* config_;  // null: not known, so neither is the cut of experts into blocks
  const ProgressFn& progress_;
  std::vector<OpenFile> files_;
  std::int64_t total_ = 0;
  std::mutex mutex_;  // of what follows
  std::int64_t done_ = 0;
  VerifyReport report_;
};

void Verifier::open(const ManifestFile& listed, const std::filesystem::path& path) {
  ++report_.num_files;
  Result<StreamFile> file = StreamFile::open_to_read(path);
  if (!file.ok()) return add_bad(path, 0, 0, file.error().message());
  if (file->size() != listed.bytes) {
    return add_bad(path, 0, 0,
                   fmt::format("has {} bytes, the manifest says {}", file->size(), listed.bytes));
  }
  OpenFile open{&listed, std::move(file).value(), {}, {}};
  if (listed.is_data) {
    open_data_file(open);
  } else {
    total_ += listed.bytes;
  }
  files_.push_back(std::move(open));
}

// Header and table, which say how the rest is covered.
void Verifier::open_data_file(OpenFile& open) {
  const std::filesystem::path& path = open.file.path();
  const auto read = [&](std::int64_t offset, std::int64_t bytes) -> Result<std::string> {
    ASSIGN_OR_RETURN(const AlignedBytes buffer, allocate_aligned(StreamFile::around_bytes(bytes)));
    ASSIGN_OR_RETURN(const std::span<std::byte> found,
                     open.file.read_around(offset, bytes, buffer.get()));
    report_.bytes += bytes;
    return std::string(reinterpret_cast<const char*>(found.data()), found.size());
  };
  const auto check = [&](std::int64_t offset, const Result<std::string>& text,
                         const Hash128& expected, std::string_view what) {
    if (!text.ok()) return add_bad(path, offset, 0, text.error().message());
    if (const Hash128 found = hash128(*text); found != expected) {
      add_bad(path, offset, std::ssize(*text),
              fmt::format("{}: has hash {}, expected {}; what it covers cannot be checked", what,
                          hex(found), hex(expected)));
    }
  };
  const std::size_t bad_before = report_.bad.size();
  const Result<std::string> start = read(0, std::min<std::int64_t>(8, open.file.size()));
  if (!start.ok()) return add_bad(path, 0, 0, start.error().message());
  const Result<std::int64_t> data_begin =
      safetensors_data_begin(std::as_bytes(std::span(*start)), open.file.size());
  if (!data_begin.ok()) return add_bad(path, 0, 0, "header: " + data_begin.error().message());
  const Result<std::string> head = read(0, *data_begin);
  check(0, head, open.listed->head, "header");
  if (report_.bad.size() > bad_before) return;
  const Result<SafetensorsHeader> header =
      parse_safetensors(std::as_bytes(std::span(*head)), open.file.size());
  if (!header.ok()) return add_bad(path, 0, 0, "header: " + header.error().message());
  if (header->entries.empty() || header->entries.back().name != kChecksumTensor) {
    return add_bad(path, 0, 0, fmt::format("header: the last tensor is not {}", kChecksumTensor));
  }
  const SafetensorsEntry& last = header->entries.back();
  const Result<std::string> table = read(last.offset, last.bytes);
  check(last.offset, table, open.listed->table, "table of checksums");
  if (report_.bad.size() > bad_before) return;
  const Status covered = read_cover(open, *header, *table);
  if (!covered.ok()) add_bad(path, 0, 0, covered.error().message());
}

// Bytes of the stretches of a tensor: itself, or the blocks of an expert. Empty: not known.
std::vector<std::int64_t> Verifier::stretch_bytes(const SafetensorsEntry& entry) const {
  const std::optional<ExpertId> expert = packed_expert_named(entry.name);
  if (!expert) return {entry.bytes};
  const auto layer =
      std::find_if(manifest_.layers.begin(), manifest_.layers.end(),
                   [&](const PackedLayer& layer) { return layer.layer == expert->layer; });
  if (config_ == nullptr || layer == manifest_.layers.end()) return {};
  const quant::ExpertBlocks blocks(config_->hidden_size, config_->moe_intermediate_size,
                                   layer->spec);
  if (blocks.expert_bytes() != entry.bytes) return {};
  std::vector<std::int64_t> bytes;
  bytes.reserve(static_cast<std::size_t>(blocks.num_blocks()));
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    bytes.push_back(blocks.block(block).bytes);
  }
  return bytes;
}

Status Verifier::read_cover(OpenFile& open, const SafetensorsHeader& header,
                            const std::string& table) {
  for (std::size_t i = 0; i + 1 < header.entries.size(); ++i) {
    const SafetensorsEntry& entry = header.entries[i];
    const std::vector<std::int64_t> sizes = stretch_bytes(entry);
    if (sizes.empty()) {
      return make_error(ErrorCode::kCorrupt,
                        "tensor {}: config.json does not say how it is cut into blocks; it and all "
                        "that follow cannot be checked",
                        entry.name);
    }
    std::int64_t offset = entry.offset;
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      open.stretches.push_back({offset, sizes[k], 0, static_cast<int>(i), static_cast<int>(k)});
      offset += sizes[k];
    }
    open.tensors.push_back(entry.name);
  }
  if (std::cmp_less(table.size(), std::ssize(open.stretches) * kChecksumBytes)) {
    open.stretches.clear();
    return make_error(ErrorCode::kCorrupt, "table of checksums: is too short");
  }
  const std::vector<std::uint64_t> checksums = checksums_of(table, std::ssize(open.stretches));
  for (std::size_t i = 0; i < checksums.size(); ++i) {
    open.stretches[i].expected = checksums[i];
    total_ += open.stretches[i].bytes;
  }
  report_.num_checksums += std::ssize(checksums);
  return {};
}

void Verifier::run() {
  // 1. Cut the work into pieces.
  std::vector<Run> runs;
  for (std::size_t f = 0; f < files_.size(); ++f) {
    const std::vector<Stretch>& stretches = files_[f].stretches;
    if (!files_[f].listed->is_data) runs.push_back({f, 0, 0});
    for (std::size_t begin = 0, end = 0; begin < stretches.size(); begin = end) {
      std::int64_t bytes = 0;
      while (end < stretches.size() &&
             (end == begin || bytes + stretches[end].bytes <= kRunBytes)) {
        bytes += stretches[end++].bytes;
      }
      runs.push_back({f, begin, end});
    }
  }
  // 2. Threads read, so that the drive always has several reads under way, and hash.
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    const Result<AlignedBytes> buffer = allocate_aligned(StreamFile::around_bytes(kRunBytes));
    if (!buffer.ok()) return add_bad({}, 0, 0, buffer.error().message());
    for (std::size_t i = next++; i < runs.size(); i = next++) {
      const OpenFile& open = files_[runs[i].file];
      if (open.listed->is_data) {
        check_run(open, runs[i], buffer->get());
      } else {
        check_whole(open, buffer->get());
      }
    }
  };
  std::vector<std::thread> threads;
  const unsigned count = std::clamp(std::thread::hardware_concurrency() + 2, 3u, 16u);
  threads.reserve(count);
  for (unsigned i = 0; i < count; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  // 3. In an order that does not depend on the threads.
  std::sort(report_.bad.begin(), report_.bad.end(), [](const auto& a, const auto& b) {
    return std::tie(a.file, a.offset, a.problem) < std::tie(b.file, b.offset, b.problem);
  });
}

void Verifier::check_whole(const OpenFile& open, std::byte* buffer) {
  Hasher hasher;
  const Status status = stream(open.file, 0, open.listed->bytes, buffer, hasher);
  if (!status.ok()) return add_bad(open.file.path(), 0, 0, status.error().message());
  if (hasher.hash128() == open.listed->hash) return;
  add_bad(open.file.path(), 0, 0,
          fmt::format("has hash {}, expected {}", hex(hasher.hash128()), hex(open.listed->hash)));
}

void Verifier::check_run(const OpenFile& open, const Run& run, std::byte* buffer) {
  const auto check = [&](const Stretch& stretch, std::uint64_t found) {
    if (found == stretch.expected) return;
    add_bad(open.file.path(), stretch.offset, stretch.bytes,
            fmt::format("{}, block {}: has checksum {}, expected {}",
                        open.tensors[static_cast<std::size_t>(stretch.tensor)], stretch.index,
                        hex(found), hex(stretch.expected)));
  };
  const std::span<const Stretch> stretches =
      std::span(open.stretches).subspan(run.begin, run.end - run.begin);
  const std::int64_t begin = stretches.front().offset;
  const std::int64_t bytes = stretches.back().offset + stretches.back().bytes - begin;
  if (bytes <= kRunBytes) {
    const Result<std::span<std::byte>> read = open.file.read_around(begin, bytes, buffer);
    if (!read.ok() && stretches.size() > 1) {  // which of them cannot be read?
      for (std::size_t i = run.begin; i < run.end; ++i)
        check_run(open, {run.file, i, i + 1}, buffer);
      return;
    }
    if (!read.ok()) return add_bad(open.file.path(), begin, bytes, read.error().message());
    for (const Stretch& stretch : stretches) {
      check(stretch, checksum(read->subspan(static_cast<std::size_t>(stretch.offset - begin),
                                            static_cast<std::size_t>(stretch.bytes))));
    }
    advance(bytes);
  } else {  // one long tensor
    Hasher hasher;
    const Status status =
        stream(open.file, stretches[0].offset, stretches[0].bytes, buffer, hasher);
    if (!status.ok()) return add_bad(open.file.path(), begin, bytes, status.error().message());
    check(stretches[0], hasher.checksum());
  }
}

Status Verifier::stream(const StreamFile& file, std::int64_t offset, std::int64_t bytes,
                        std::byte* buffer, Hasher& hasher) {
  const std::int64_t end = offset + bytes;
  while (offset < end) {
    const std::int64_t piece = std::min(kRunBytes, end - offset);
    ASSIGN_OR_RETURN(const std::span<std::byte> read, file.read_around(offset, piece, buffer));
    hasher.add(read);
    advance(piece);
    offset += piece;
  }
  return {};
}

void Verifier::advance(std::int64_t bytes) {
  const std::lock_guard lock(mutex_);
  done_ += bytes;
  report_.bytes += bytes;
  if (progress_) progress_(done_, total_);
}

}  // namespace

Result<VerifyReport> verify_files(const std::filesystem::path& dir,
                                  std::span<const std::filesystem::path> expert_dirs,
                                  const Manifest& manifest, const ModelConfig* config,
                                  const ProgressFn& progress) {
  ASSIGN_OR_RETURN(const std::vector<std::filesystem::path> search,
                   expert_directories(dir, expert_dirs));
  Verifier verifier(manifest, config, progress);
  for (const ManifestFile& file : manifest.files) {
    if (!file.is_data || file.name == kDenseFile) {
      verifier.open(file, dir / file.name);
      continue;
    }
    const std::vector<std::filesystem::path> copies = find_copies(search, file.name);
    for (const std::filesystem::path& copy : copies) verifier.open(file, copy);
    if (copies.empty()) verifier.open(file, search.front() / file.name);
  }
  verifier.run();
  return std::move(verifier.report());
}

Result<VerifyReport> verify_store(const std::filesystem::path& dir,
                                  std::span<const std::filesystem::path> expert_dirs,
                                  const ProgressFn& progress) {
  // 1. The manifest, which everything else hangs on.
  const std::filesystem::path path = dir / kManifestFile;
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, kMaxManifestBytes));
  const Result<Manifest> manifest = parse_manifest(text);
  if (!manifest.ok()) {
    VerifyReport report;
    report.num_files = 1;
    report.bytes = std::ssize(text);
    report.bad.push_back(
        {path, 0, 0, manifest.error().message() + "; without it nothing else can be checked"});
    return report;
  }
  // 2. What it lists. A damaged config.json shows up as a file whose hash does not hold.
  const Result<ModelConfig> config = ModelConfig::load(dir);
  ASSIGN_OR_RETURN(VerifyReport report, verify_files(dir, expert_dirs, *manifest,
                                                     config.ok() ? &*config : nullptr, progress));
  report.num_files += 1;
  report.bytes += std::ssize(text);
  // 3. What it does not list.
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename().string();
    if (name != kManifestFile && manifest->file(name) == nullptr) {
      report.unknown.push_back(entry.path());
    }
  }
  std::sort(report.unknown.begin(), report.unknown.end());
  return report;
}

}  // namespace stoker::storage
