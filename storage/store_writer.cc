#include "storage/store_writer.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <system_error>
#include <thread>

#include "core/base/file.h"
#include "quant/expert_block.h"
#include "storage/checksum.h"
#include "storage/data_file.h"
#include "storage/pack_journal.h"
#include "storage/store_verify.h"
#include "storage/stream_file.h"
#include "storage/write_file.h"

namespace stoker::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxSmallFile = 256 << 20;
constexpr std::int64_t kDensePiece = 8 << 20;
constexpr std::int64_t kMemory = std::int64_t{1200} << 20;  // for all threads together
// Bytes written between two syncs: what a kill may cost. A tenth of what is done, within limits
// that make syncs cheap and losses small.
constexpr std::int64_t kMinCommitBytes = std::int64_t{1} << 20;
constexpr std::int64_t kMaxCommitBytes = std::int64_t{512} << 20;

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

Status sync_directory(const fs::path& dir) { return sync_parent_directory(dir / kManifestFile); }

// A data file in the making.
struct DataFile {
  std::string name;
  DataFileLayout layout;
  std::optional<StreamFile> file;
  std::vector<std::uint64_t> checksums;  // the table
};

// One piece of work: a dense tensor, or an expert.
struct Unit {
  std::size_t file = 0;    // index into the data files; 0: dense
  std::size_t tensor = 0;  // index into the file's layout
  ExpertId id;             // experts only
};

class StoreWriter {
 public:
  StoreWriter(const fs::path& out, const ModelConfig& config, const StorePlan& plan,
              StoreContent& content, const StoreWriteOptions& options)
      : out_(out.lexically_normal()),
        config_(config),
        plan_(plan),
        content_(content),
        options_(options) {
    if (!out_.has_filename()) out_ = out_.parent_path();  // "store/"
    partial_ = out_;
    partial_ += ".partial";
  }

  Status run() {
    lay_out();
    RETURN_IF_ERROR(open_partial());
    if (published_ready_) return publish();
    RETURN_IF_ERROR(check_space());
    Status written = write();
    if (!written.ok() && written.error().code() == ErrorCode::kResource)
      return full(written.error());
    RETURN_IF_ERROR(written);
    RETURN_IF_ERROR(verify());
    RETURN_IF_ERROR(write_text_file(partial_ / kManifestFile, manifest_text(manifest())));
    return publish();
  }

 private:
  void lay_out();
  Hash128 plan_hash() const;
  Status open_partial();
  Status check_space() const;
  Status write() {
    RETURN_IF_ERROR(create_files());
    RETURN_IF_ERROR(write_units());
    return write_tables();
  }
  Status create_files();
  Status write_units();
  void work(std::atomic<std::size_t>& next);
  Status write_dense(const Unit& unit, std::vector<std::uint64_t>& checksums, std::byte* buffer,
                     ScratchBytes& scratch);
  Status write_expert(const Unit& unit, std::vector<std::uint64_t>& checksums, std::byte* buffer,
                      ScratchBytes& scratch);
  void finished(std::int64_t index, std::vector<std::uint64_t> checksums);
  Status commit();
  Status write_tables();
  Status verify();
  Manifest manifest() const;
  Status publish();

  std::int64_t unit_bytes(const Unit& unit) const {
    return files_[unit.file].layout.tensors[unit.tensor].bytes;
  }
  Error full(const Error& error) const;

  fs::path out_, partial_;
  const ModelConfig& config_;
  const StorePlan& plan_;
  StoreContent& content_;
  const StoreWriteOptions& options_;

  std::vector<PackedLayer> layers_;
  std::vector<std::optional<quant::ExpertBlocks>> blocks_;  // by layer
  std::vector<DataFile> files_;
  std::vector<Unit> units_;
  std::vector<std::size_t> todo_;  // units that the journal does not list
  std::optional<PackJournal> journal_;
  bool published_ready_ = false;  // complete and verified: only the last rename is missing

  std::mutex mutex_;  // of what follows
  std::int64_t done_bytes_ = 0, total_bytes_ = 0, uncommitted_bytes_ = 0;
  std::vector<PackJournal::Unit> uncommitted_;
  Status status_;
  std::atomic<bool> failed_ = false;
  std::mutex commit_mutex_;
};

// Every byte's place follows from the plan alone: so a resumed pack arrives at the same store.
void StoreWriter::lay_out() {
  // 1. Dense tensors, one checksum each.
  files_.push_back({kDenseFile,
                    DataFileLayout::make(plan_.dense, std::vector<int>(plan_.dense.size(), 1)),
                    {},
                    {}});
  for (std::size_t i = 0; i < plan_.dense.size(); ++i) units_.push_back({0, i, {}});
  // 2. Experts, dealt so that every file gets an even share of every layer, and neighbours in
  //    number do not always meet in one file.
  const auto num_files = static_cast<std::size_t>(plan_.layers.empty() ? 0 : plan_.num_files);
  std::vector<std::vector<TensorDecl>> tensors(num_files);
  std::vector<std::vector<int>> checksums(num_files);
  blocks_.resize(config_.layers().size());
  for (const int layer : plan_.layers) {
    const QuantSpec& spec = plan_.expert_specs[static_cast<std::size_t>(layer)];
    auto& blocks = blocks_[static_cast<std::size_t>(layer)];
    blocks.emplace(config_.hidden_size, config_.moe_intermediate_size, spec);
    layers_.push_back(
        {layer, config_.n_routed_experts, spec, blocks->expert_bytes(), blocks->num_blocks()});
    for (int expert = 0; expert < config_.n_routed_experts; ++expert) {
      const ExpertId id{layer, expert};
      const std::size_t file = static_cast<std::size_t>(expert + layer) % num_files;
      units_.push_back({file + 1, tensors[file].size(), id});
      tensors[file].push_back({packed_expert_name(id), StoredType::kU8, {blocks->expert_bytes()}});
      checksums[file].push_back(blocks->num_blocks());
    }
  }
  for (std::size_t file = 0; file < num_files; ++file) {
    files_.push_back({expert_file_name(static_cast<int>(file)),
                      DataFileLayout::make(std::move(tensors[file]), checksums[file]),
                      {},
                      {}});
  }
  for (DataFile& file : files_) {
    file.checksums.resize(static_cast<std::size_t>(file.layout.num_checksums));
  }
  for (const Unit& unit : units_) total_bytes_ += unit_bytes(unit);
}

Hash128 StoreWriter::plan_hash() const {
  Hasher hasher;
  const auto add = [&](std::string_view text) {
    hasher.add(std::as_bytes(std::span(text)));
    hasher.add(std::as_bytes(std::span("\n")));
  };
  add(fmt::format("version {} source {} {}", kStoreVersion, hex(plan_.source), plan_.source_model));
  add(hex(plan_.source_config));
  for (const auto& [name, content] : plan_.copies) {
    add(name);
    add(content);
  }
  for (const PackedLayer& layer : layers_) {
    add(fmt::format("layer {} {} {} {}", layer.layer, quant_spec_name(layer.spec),
                    layer.expert_bytes, layer.num_blocks));
  }
  for (const DataFile& file : files_) add(file.layout.head);
  return hasher.hash128();
}

Status StoreWriter::open_partial() {
  std::error_code ignored, code;
  if (fs::exists(fs::symlink_status(out_, ignored))) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: is there already; choose another name, or delete it first",
                      out_.string());
  }
  fs::create_directories(partial_, code);
  if (code) {
    return make_error(ErrorCode::kIo, "{}: cannot create: {}", partial_.string(), code.message());
  }
  const bool begun = fs::exists(partial_ / kJournalFile, ignored);
  const bool complete = fs::exists(partial_ / kManifestFile, ignored);
  if (!begun && !complete) {  // a kill may have left the journal's own beginning
    for (const auto& entry : fs::directory_iterator(partial_, ignored)) {
      if (entry.path().filename().string().starts_with(kJournalFile)) continue;
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: is not an unfinished store, but holds {}; choose another name, or "
                        "delete it first",
                        partial_.string(), entry.path().filename().string());
    }
  }
  if (complete) {
    ASSIGN_OR_RETURN(const std::string text,
                     read_small_file(partial_ / kManifestFile, kMaxSmallFile));
    const Result<Manifest> manifest = parse_manifest(text);
    published_ready_ = manifest.ok() && manifest->plan == plan_hash();
    if (published_ready_) return {};
    if (!begun) {
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: holds the complete store of something else; rename or delete it first",
                        partial_.string());
    }
  }
  const std::string words = fmt::format("{} from {}", plan_.options, plan_.source_model);
  ASSIGN_OR_RETURN(PackJournal journal,
                   PackJournal::open(partial_ / kJournalFile, plan_hash(), words));
  journal_.emplace(std::move(journal));
  return {};
}

Error StoreWriter::full(const Error& error) const {
  struct statvfs space{};
  const bool known = ::statvfs(partial_.c_str(), &space) == 0;
  const auto free = static_cast<std::int64_t>(space.f_bavail * space.f_frsize);
  std::int64_t needed = 0;
  for (const DataFile& file : files_) needed += file.layout.file_bytes;
  return make_error(
      ErrorCode::kResource,
      "{}; the store takes {:.1f} GiB{}. What is done stays in {}: make room and run the same "
      "command again",
      error.message(), gib(needed),
      known ? fmt::format(", {:.1f} GiB are free", gib(free)) : std::string(), partial_.string());
}

// What is still to be written must fit before anything is.
Status StoreWriter::check_space() const {
  struct statvfs space;
  if (::statvfs(partial_.c_str(), &space) != 0) return {};
  const auto free = static_cast<std::int64_t>(space.f_bavail * space.f_frsize);
  std::int64_t needed = 0, there = 0;
  for (const DataFile& file : files_) {
    needed += file.layout.file_bytes;
    struct stat info;
    if (::stat((partial_ / file.name).c_str(), &info) == 0) there += info.st_blocks * 512;
  }
  if (needed - there <= free) return {};
  return make_error(ErrorCode::kResource,
                    "{}: needs {:.1f} GiB more, {:.1f} GiB are free on its drive; make room, or "
                    "choose another drive",
                    partial_.string(), gib(needed - there), gib(free));
}

Status StoreWriter::create_files() {
  // 1. What the journal lists is done. A file that is shorter than it was when its units were
  //    listed has been tampered with; verify() finds out about everything else.
  std::set<std::int64_t> done;
  for (const PackJournal::Unit& listed : journal_->done()) {
    if (listed.index < 0 || std::cmp_greater_equal(listed.index, units_.size())) continue;
    const Unit& unit = units_[static_cast<std::size_t>(listed.index)];
    DataFile& file = files_[unit.file];
    const DataFileLayout::Tensor& tensor = file.layout.tensors[unit.tensor];
    struct stat info;
    const bool there = ::stat((partial_ / file.name).c_str(), &info) == 0 &&
                       info.st_size == file.layout.file_bytes;
    if (!there || std::cmp_not_equal(listed.checksums.size(), tensor.num_checksums)) continue;
    std::copy(listed.checksums.begin(), listed.checksums.end(),
              file.checksums.begin() + tensor.first_checksum);
    if (done.insert(listed.index).second) done_bytes_ += tensor.bytes;
  }
  for (std::size_t i = 0; i < units_.size(); ++i) {
    if (!done.contains(static_cast<std::int64_t>(i))) todo_.push_back(i);
  }
  // 2. Files of their final size, with their headers.
  for (DataFile& file : files_) {
    const StreamMode mode = &file == files_.data() ? StreamMode::kCached : StreamMode::kDirect;
    ASSIGN_OR_RETURN(StreamFile opened, StreamFile::open_to_write(partial_ / file.name, mode));
    file.file.emplace(std::move(opened));
    if (file.file->size() != file.layout.file_bytes) {
      RETURN_IF_ERROR(file.file->resize(file.layout.file_bytes));
    }
    const std::string& head = file.layout.head;
    ASSIGN_OR_RETURN(const AlignedBytes buffer, allocate_aligned(std::ssize(head)));
    std::copy_n(reinterpret_cast<const std::byte*>(head.data()), head.size(), buffer.get());
    RETURN_IF_ERROR(file.file->write(0, {buffer.get(), head.size()}));
  }
  for (const auto& [name, content] : plan_.copies) {
    RETURN_IF_ERROR(write_text_file(partial_ / name, content));
  }
  return sync_directory(partial_);
}

Status StoreWriter::write_units() {
  // As many threads as keep drives and cores busy, within the memory that all may take.
  std::int64_t expert_bytes = kDensePiece;
  for (const PackedLayer& layer : layers_)
    expert_bytes = std::max(expert_bytes, layer.expert_bytes);
  const std::int64_t each = expert_bytes + content_.scratch_bytes();
  if (each > kMemory) {
    return make_error(ErrorCode::kUnsupported,
                      "an expert takes {:.1f} GiB of memory to convert; at most {:.1f} are used",
                      gib(each), gib(kMemory));
  }
  const auto cores = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  // Most of them wait for a drive at any time: six more than cores keep it as busy as fio does.
  const auto num_threads = std::clamp<std::int64_t>(kMemory / each, 1, cores + 6);
  if (options_.writing) options_.writing(done_bytes_, total_bytes_);
  std::atomic<std::size_t> next = 0;
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_threads));
  for (std::int64_t i = 0; i < num_threads; ++i) threads.emplace_back([&] { work(next); });
  for (std::thread& thread : threads) thread.join();
  // What was finished before something failed is kept.
  const Status committed = commit();
  return status_.ok() ? committed : status_;
}

void StoreWriter::work(std::atomic<std::size_t>& next) {
  ScratchBytes buffer, scratch;
  std::vector<std::uint64_t> checksums;
  const auto do_unit = [&](std::size_t index) -> Status {
    const Unit& unit = units_[index];
    const std::int64_t bytes = unit.file == 0 ? kDensePiece : unit_bytes(unit);
    ASSIGN_OR_RETURN(std::byte* const memory, buffer.get(bytes));
    checksums.clear();
    RETURN_IF_ERROR(unit.file == 0 ? write_dense(unit, checksums, memory, scratch)
                                   : write_expert(unit, checksums, memory, scratch));
    finished(static_cast<std::int64_t>(index), checksums);
    bool due = false;
    {
      const std::lock_guard lock(mutex_);
      due = uncommitted_bytes_ >= std::clamp(done_bytes_ / 10, kMinCommitBytes, kMaxCommitBytes);
    }
    return due ? commit() : Status();
  };
  for (std::size_t i = next++; i < todo_.size() && !failed_; i = next++) {
    Status status = do_unit(todo_[i]);
    if (status.ok()) continue;
    const std::lock_guard lock(mutex_);
    if (!failed_.exchange(true)) status_ = std::move(status);
  }
}

Status StoreWriter::write_dense(const Unit& unit, std::vector<std::uint64_t>& checksums,
                                std::byte* buffer, ScratchBytes& scratch) {
  const DataFile& file = files_[0];
  const DataFileLayout::Tensor& tensor = file.layout.tensors[unit.tensor];
  Hasher hasher;
  for (std::int64_t at = 0; at < tensor.bytes; at += kDensePiece) {
    const std::span<std::byte> piece(
        buffer, static_cast<std::size_t>(std::min(kDensePiece, tensor.bytes - at)));
    RETURN_IF_ERROR(content_.dense(unit.tensor, at, piece, scratch));
    hasher.add(piece);
    RETURN_IF_ERROR(file.file->write(tensor.offset + at, piece));
  }
  checksums.push_back(hasher.checksum());
  return {};
}

Status StoreWriter::write_expert(const Unit& unit, std::vector<std::uint64_t>& checksums,
                                 std::byte* buffer, ScratchBytes& scratch) {
  const DataFile& file = files_[unit.file];
  const DataFileLayout::Tensor& tensor = file.layout.tensors[unit.tensor];
  const std::span<std::byte> bytes(buffer, static_cast<std::size_t>(tensor.bytes));
  RETURN_IF_ERROR(content_.expert(unit.id, bytes, scratch));
  const quant::ExpertBlocks& blocks = *blocks_[static_cast<std::size_t>(unit.id.layer)];
  for (int block = 0; block < blocks.num_blocks(); ++block) {
    const quant::ExpertBlocks::Block at = blocks.block(block);
    checksums.push_back(checksum(
        bytes.subspan(static_cast<std::size_t>(at.offset), static_cast<std::size_t>(at.bytes))));
  }
  return file.file->write(tensor.offset, bytes);
}

void StoreWriter::finished(std::int64_t index, std::vector<std::uint64_t> checksums) {
  const Unit& unit = units_[static_cast<std::size_t>(index)];
  DataFile& file = files_[unit.file];
  const DataFileLayout::Tensor& tensor = file.layout.tensors[unit.tensor];
  const std::lock_guard lock(mutex_);
  std::copy(checksums.begin(), checksums.end(), file.checksums.begin() + tensor.first_checksum);
  uncommitted_.push_back({index, std::move(checksums)});
  uncommitted_bytes_ += tensor.bytes;
  done_bytes_ += tensor.bytes;
  if (options_.writing) options_.writing(done_bytes_, total_bytes_);
}

// The order is everything: units are written, then durable, then listed.
Status StoreWriter::commit() {
  const std::lock_guard one_at_a_time(commit_mutex_);
  std::vector<PackJournal::Unit> units;
  {
    const std::lock_guard lock(mutex_);
    units.swap(uncommitted_);
    uncommitted_bytes_ = 0;
  }
  if (units.empty()) return {};
  for (const DataFile& file : files_) RETURN_IF_ERROR(file.file->sync());
  return journal_->append(units);
}

Status StoreWriter::write_tables() {
  for (const DataFile& file : files_) {
    const std::string table = checksum_table(file.checksums, file.layout.table_bytes);
    ASSIGN_OR_RETURN(const AlignedBytes buffer, allocate_aligned(std::ssize(table)));
    std::copy_n(reinterpret_cast<const std::byte*>(table.data()), table.size(), buffer.get());
    RETURN_IF_ERROR(file.file->write(file.layout.table_offset, {buffer.get(), table.size()}));
    RETURN_IF_ERROR(file.file->sync());
  }
  return {};
}

Manifest StoreWriter::manifest() const {
  Manifest manifest;
  manifest.source_model = plan_.source_model;
  manifest.source_config = plan_.source_config;
  manifest.plan = plan_hash();
  manifest.layers = layers_;
  for (const auto& [name, content] : plan_.copies) {
    ManifestFile file;
    file.name = name;
    file.bytes = std::ssize(content);
    file.hash = hash128(content);
    manifest.files.push_back(std::move(file));
  }
  for (const DataFile& data : files_) {
    ManifestFile file;
    file.name = data.name;
    file.bytes = data.layout.file_bytes;
    file.is_data = true;
    file.head = hash128(data.layout.head);
    file.table = hash128(checksum_table(data.checksums, data.layout.table_bytes));
    manifest.files.push_back(std::move(file));
  }
  return manifest;
}

Status StoreWriter::verify() {
  if (!options_.verify) return {};
  ASSIGN_OR_RETURN(const VerifyReport report,
                   verify_files(partial_, {}, manifest(), &config_, options_.verifying));
  if (report.bad.empty()) return {};
  const BadStretch& first = report.bad.front();
  return make_error(ErrorCode::kCorrupt,
                    "{}: offset {}: {}; {} places do not hold what was written to them. Check the "
                    "drive, delete {} and pack again",
                    first.file.string(), first.offset, first.problem, report.bad.size(),
                    partial_.string());
}

Status StoreWriter::publish() {
  // 1. Nothing but the store.
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(partial_, code)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kJournalFile) || name.ends_with(".partial")) {
      fs::remove(entry.path(), code);
    }
  }
  RETURN_IF_ERROR(sync_directory(partial_));
  // 2. Its name, all at once.
  if (::rename(partial_.c_str(), out_.c_str()) != 0) {
    return make_error(ErrorCode::kIo, "{}: cannot rename to {}: {}", partial_.string(),
                      out_.string(), std::generic_category().message(errno));
  }
  return sync_parent_directory(out_);
}

}  // namespace

Result<std::byte*> ScratchBytes::get(std::int64_t bytes) {
  if (bytes > size_) {
    memory_.reset();
    size_ = 0;
    ASSIGN_OR_RETURN(memory_, allocate_aligned(bytes));
    size_ = bytes;
  }
  return memory_.get();
}

Status write_store(const fs::path& out, const ModelConfig& config, const StorePlan& plan,
                   StoreContent& content, const StoreWriteOptions& options) {
  return StoreWriter(out, config, plan, content, options).run();
}

}  // namespace stoker::storage
