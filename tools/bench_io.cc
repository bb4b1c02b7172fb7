#include "tools/bench_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/descriptor.h"
#include "core/base/median.h"
#include "storage/block_reader.h"
#include "storage/open_model.h"
#include "tools/drive_probe.h"
#include "tools/fio.h"

namespace stoker::tools {
namespace {

using Json = nlohmann::ordered_json;
using storage::DirectChoice;
using storage::IoChoice;

// Short, and many of them: drives switch between two speeds within seconds.
constexpr double kSeconds = 0.4;
constexpr int kFioDepths[] = {2, 4, 8, 16, 32, 64};
constexpr std::int64_t kUnlimited = std::int64_t{1} << 40;  // in flight: the depth decides
constexpr int kPairsPerRound = 4;
constexpr int kFioTrials = 3;  // of each depth, to find the best

// Medians over the rounds.
struct Samples {
  std::vector<double> rates;  // bytes per second
  std::vector<double> cpu;    // seconds per GB
  void add(double rate, double cpu_per_gb) {
    rates.push_back(rate);
    cpu.push_back(cpu_per_gb);
  }
};

double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}
double most(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

double process_cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Leaves the files to the drive: what the page cache holds of them is dropped.
void drop_from_page_cache(const storage::ExtentSource& source) {
  for (const storage::ExtentFile& file : source.extent_files()) {
    const Descriptor opened = open_file(file.path, O_RDONLY);
    if (opened.is_open()) ::posix_fadvise(opened.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

// One way of reading: a reader of its own, and a probe that keeps it busy.
class Way {
 public:
  static Result<std::unique_ptr<Way>> open(const storage::ModelSource& source, IoChoice io,
                                           bool direct, bool registered,
                                           std::int64_t bytes_in_flight) {
    auto way = std::unique_ptr<Way>(new Way(source, direct, registered));
    storage::ReaderOptions options;
    options.io = io;
    options.direct = direct ? DirectChoice::kAuto : DirectChoice::kOff;
    options.register_memory = registered;
    options.demand_bytes_in_flight = bytes_in_flight;
    ASSIGN_OR_RETURN(way->reader_, storage::open_reader(source, options));
    way->probe_ = std::make_unique<DriveProbe>(source, *way->reader_, source.expert_layers(),
                                               source.config().n_routed_experts);
    return way;
  }

  std::string name() const {
    return fmt::format("{} {}{}", reader_->engine_name(), direct_ ? "direct" : "buffered",
                       registered_ ? " registered" : "");
  }
  const storage::BlockReader& reader() const { return *reader_; }

  Status measure(int depth, Samples& samples) {
    if (!direct_) drop_from_page_cache(source_);
    const double cpu = process_cpu_seconds();
    const std::int64_t bytes = reader_->load().bytes_read;
    ASSIGN_OR_RETURN(const double rate, probe_->measure(kSeconds, depth), "{}", name());
    const double gb = static_cast<double>(reader_->load().bytes_read - bytes) / 1e9;
    samples.add(rate, gb > 0.0 ? (process_cpu_seconds() - cpu) / gb : 0.0);
    return {};
  }

 private:
  Way(const storage::ModelSource& source, bool direct, bool registered)
      : source_(source), direct_(direct), registered_(registered) {}

  const storage::ModelSource& source_;
  bool direct_, registered_;
  std::unique_ptr<storage::BlockReader> reader_;
  std::unique_ptr<DriveProbe> probe_;
};

struct Case {
  Way* way = nullptr;
  int depth = 1;
  Samples samples;
};

struct FioCase {
  int depth = 1;
  Samples samples;
};

// Our reader with the engine's settings and fio at its best depth, in pairs.
struct Paired {
  Samples ours;
  std::vector<double> fio, ratios;
};

class IoBench {
 public:
  IoBench(const storage::ModelSource& source, int rounds) : source_(source), rounds_(rounds) {}

  Status run() {
    RETURN_IF_ERROR(open_ways());
    RETURN_IF_ERROR(measure_cases());
    return measure_fio();
  }
  std::string text() const;
  Json json() const;

 private:
  Status open_ways();
  Status measure_cases();
  Status measure_fio();
  Status pair_with_fio(const FioCase& best);
  FioJob fio_job(int depth) const;

  const storage::ModelSource& source_;
  int rounds_;
  std::vector<std::unique_ptr<Way>> ways_;
  std::unique_ptr<Way> engine_;  // with the limits that runs have
  std::vector<Case> cases_;
  std::vector<FioCase> fio_;
  Paired paired_;
  std::vector<std::string> notes_;
};

// 1. Readers, one per way, and what each is measured at.
Status IoBench::open_ways() {
  const auto add = [&](IoChoice io, bool direct, bool registered,
                       std::initializer_list<int> depths) -> Status {
    Result<std::unique_ptr<Way>> way = Way::open(source_, io, direct, registered, kUnlimited);
    if (!way.ok() && way.error().code() == ErrorCode::kUnsupported) {
      notes_.push_back(way.error().message());
      return {};
    }
    if (!way.ok()) return std::move(way).error();
    for (const std::string& notice : (*way)->reader().notices()) notes_.push_back(notice);
    ways_.push_back(std::move(way).value());
    for (const int depth : depths) cases_.push_back({ways_.back().get(), depth, {}});
    return {};
  };
  RETURN_IF_ERROR(add(IoChoice::kUring, true, true, {1, 2, 4, 8, 16, 32, 64}));
  RETURN_IF_ERROR(add(IoChoice::kUring, true, false, {4, 16, 64}));
  RETURN_IF_ERROR(add(IoChoice::kUring, false, true, {4, 16, 64}));
  RETURN_IF_ERROR(add(IoChoice::kPread, true, false, {1, 2, 4, 8, 16, 32, 64}));
  RETURN_IF_ERROR(add(IoChoice::kPread, false, false, {4, 16, 64}));
  ASSIGN_OR_RETURN(engine_, Way::open(source_, IoChoice::kAuto, true, true,
                                      storage::ReaderOptions{}.demand_bytes_in_flight));
  return {};
}

// 2. Round after round over all cases, each in an order of its own: drives change their speed, and
// some give more after a rest.
Status IoBench::measure_cases() {
  std::vector<Case*> order;
  order.reserve(cases_.size());
  for (Case& one : cases_) order.push_back(&one);
  std::mt19937 random(1);
  for (int round = 0; round < rounds_; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (Case* one : order) RETURN_IF_ERROR(one->way->measure(one->depth, one->samples));
  }
  return {};
}

FioJob IoBench::fio_job(int depth) const {
  FioJob job;
  for (const storage::ExtentFile& file : source_.extent_files()) job.files.push_back(file.path);
  job.block_bytes = source_.block_bytes(source_.expert_layers().front(), 0);
  job.depth = depth;
  job.seconds = kSeconds;
  return job;
}

// 3. fio: first its best depth, then pairs at that.
Status IoBench::measure_fio() {
  for (int trial = 0; trial < kFioTrials; ++trial) {
    for (std::size_t i = 0; i < std::size(kFioDepths); ++i) {
      const Result<FioResult> result = run_fio(fio_job(kFioDepths[i]));
      if (!result.ok() && result.error().code() == ErrorCode::kNotFound) {
        notes_.emplace_back("fio is not installed: nothing to compare with");
        return {};
      }
      if (!result.ok()) return result.error();
      if (trial == 0) fio_.push_back({kFioDepths[i], {}});
      fio_[i].samples.add(result->bytes_per_second, result->cpu_seconds_per_gb);
    }
  }
  return pair_with_fio(
      *std::max_element(fio_.begin(), fio_.end(), [](const FioCase& a, const FioCase& b) {
        return median(a.samples.rates) < median(b.samples.rates);
      }));
}

Status IoBench::pair_with_fio(const FioCase& best) {
  const FioJob job = fio_job(best.depth);
  for (int round = 0; round < kPairsPerRound * rounds_; ++round) {
    // Either goes first in turn.
    const bool fio_first = round % 2 == 1;
    double fio = 0.0;
    for (const bool now_fio : {fio_first, !fio_first}) {
      if (now_fio) {
        ASSIGN_OR_RETURN(const FioResult result, run_fio(job));
        fio = result.bytes_per_second;
      } else {
        RETURN_IF_ERROR(engine_->measure(DriveProbe::kMaxDepth, paired_.ours));
      }
    }
    paired_.fio.push_back(fio);
    paired_.ratios.push_back(paired_.ours.rates.back() / fio);
  }
  return {};
}

std::string IoBench::text() const {
  const double best = paired_.fio.empty() ? 0.0 : median(paired_.fio);
  std::string text = fmt::format("{:28} {:>5} {:>7} {:>7} {:>7} {:>12} {:>8}\n", "reads", "depth",
                                 "GB/s", "least", "most", "CPU s per GB", "of fio");
  const auto line = [&](const std::string& name, int depth, const Samples& samples) {
    text += fmt::format("{:28} {:>5} {:>7.2f} {:>7.2f} {:>7.2f} {:>12.4f} {:>8}\n", name, depth,
                        median(samples.rates) / 1e9, least(samples.rates) / 1e9,
                        most(samples.rates) / 1e9, median(samples.cpu),
                        best > 0.0 ? fmt::format("{:.2f}", median(samples.rates) / best) : "-");
  };
  for (const Case& one : cases_) line(one.way->name(), one.depth, one.samples);
  for (const FioCase& one : fio_) line("fio io_uring", one.depth, one.samples);
  if (!paired_.ratios.empty()) {
    text += fmt::format(
        "as runs read, paired with fio: {:.2f} of {:.2f} GB/s, median ratio {:.3f} "
        "[{:.2f} to {:.2f}] over {} rounds, {:.4f} CPU s per GB\n",
        median(paired_.ours.rates) / 1e9, best / 1e9, median(paired_.ratios), least(paired_.ratios),
        most(paired_.ratios), paired_.ratios.size(), median(paired_.ours.cpu));
  }
  for (const std::string& note : notes_) text += "note: " + note + "\n";
  return text;
}

Json IoBench::json() const {
  const auto of = [](const std::string& name, int depth, const Samples& samples) {
    return Json{{"reads", name},
                {"depth", depth},
                {"seconds", kSeconds * static_cast<double>(samples.rates.size())},
                {"gb_s", median(samples.rates) / 1e9},
                {"gb_s_least", least(samples.rates) / 1e9},
                {"gb_s_most", most(samples.rates) / 1e9},
                {"cpu_s_per_gb", median(samples.cpu)}};
  };
  Json result = {{"suite", "io"}, {"cases", Json::array()}};
  for (const Case& one : cases_) {
    result["cases"].push_back(of(one.way->name(), one.depth, one.samples));
  }
  for (const FioCase& one : fio_) {
    result["cases"].push_back(of("fio io_uring", one.depth, one.samples));
  }
  if (!paired_.ratios.empty()) {
    result["paired"] = {
        {"rounds", paired_.ratios.size()},         {"gb_s", median(paired_.ours.rates) / 1e9},
        {"fio_gb_s", median(paired_.fio) / 1e9},   {"ratio", median(paired_.ratios)},
        {"ratio_least", least(paired_.ratios)},    {"ratio_most", most(paired_.ratios)},
        {"cpu_s_per_gb", median(paired_.ours.cpu)}};
  }
  result["notes"] = notes_;
  return result;
}

}  // namespace

Result<int> bench_io(const IoBenchFlags& flags) {
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(flags.model.model));
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(directory));
  const std::vector<std::filesystem::path> expert_dirs(flags.model.store.begin(),
                                                       flags.model.store.end());
  ASSIGN_OR_RETURN(const std::unique_ptr<storage::ModelSource> source,
                   storage::open_model(directory, config, expert_dirs));
  if (source->expert_layers().empty()) {
    return make_error(ErrorCode::kInvalidArgument, "{}: has no routed experts to read",
                      directory.string());
  }
  IoBench bench(*source, flags.rounds);
  RETURN_IF_ERROR(bench.run());
  fmt::print("{}", flags.json ? bench.json().dump() + "\n" : bench.text());
  return 0;
}

}  // namespace stoker::tools
