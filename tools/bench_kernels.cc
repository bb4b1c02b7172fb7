#include "tools/bench_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>

#include "core/base/median.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/read_bandwidth.h"
#include "cpu/topology.h"
#include "quant/tile16.h"

namespace stoker::tools {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr std::int64_t kCols = 7168;  // hidden size of DeepSeek-V3.2
constexpr std::int64_t kStride = cpu::input_stride(kCols);
constexpr int kMostRows = 16;
constexpr std::int64_t kLeastBytes = std::int64_t{512} << 20;
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;  // between two looks at the clock
constexpr Seconds kSlice{0.06};                              // of one case in one round
constexpr Seconds kReferenceSlice{0.03};

constexpr QuantSpec kSpecs[] = {{QuantFormat::kBf16, 128}, {QuantFormat::kF8E4m3B128, 128},
                                {QuantFormat::kInt8, 128}, {QuantFormat::kInt4, 32},
                                {QuantFormat::kInt4, 64},  {QuantFormat::kInt4, 128}};
constexpr int kRowCounts[] = {1, 4, kMostRows};

std::int64_t default_working_set() {
  std::int64_t last_cache = 0;
  for (const CacheInfo& cache : Topology::detect().caches) {
    last_cache = std::max(last_cache, cache.bytes * cache.count);
  }
  return std::max(kLeastBytes, 3 * last_cache) / kPieceBytes * kPieceBytes;
}

// Memory that is walked round and round: what is read next was read longest ago.
class WorkingSet {
 public:
  static Result<WorkingSet> create(std::int64_t bytes) {
    WorkingSet set;
    ASSIGN_OR_RETURN(set.memory_, cpu::Memory::create(static_cast<std::size_t>(bytes)));
    fill_with_weights({set.memory_.data(), set.memory_.bytes()});
    return set;
  }

  // The next `bytes`, together.
  std::byte* next(std::int64_t bytes) {
    if (at_ + bytes > static_cast<std::int64_t>(memory_.bytes())) at_ = 0;
    std::byte* const piece = memory_.data() + at_;
    at_ += (bytes + 63) / 64 * 64;
    return piece;
  }

 private:
  cpu::Memory memory_;
  std::int64_t at_ = 0;
};

// Time that this thread has run: what other programs take of its core does not count.
Seconds thread_time() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return Seconds(static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec));
}

// Calls `work`, which returns how much it did, until the time is over: amount per second.
template <typename Work>
double rate_of(Seconds time, Work work) {
  double amount = 0.0;
  const Seconds start = thread_time();
  Seconds passed{};
  do {
    amount += work();
    passed = thread_time() - start;
  } while (passed < time);
  return amount / passed.count();
}

class KernelBench {
 public:
  explicit KernelBench(WorkingSet& memory) : memory_(memory), y_(kMostRows * kMostOutputs) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<float> row(kCols);
    x_.resize(kMostRows * kStride);
    for (int r = 0; r < kMostRows; ++r) {
      for (float& value : row) value = normal(random);
      cpu::kernels_for(Isa::kScalar)
          .prepare_row(row.data(), DType::kF32, kCols, x_.data() + r * kStride);
    }
  }

  double read_rate() {
    return rate_of(kReferenceSlice, [&] {
      const std::byte* const piece = memory_.next(kPieceBytes);
      (void)read_through({piece, static_cast<std::size_t>(kPieceBytes)});
      return static_cast<double>(kPieceBytes);
    });
  }
  // Multiply-adds per second.
  double fma_rate(Isa isa) {
    return rate_of(kReferenceSlice, [&] {
      float out[16];
      const std::int64_t count = cpu::kernels_for(isa).fma_peak(5000, 1.0f + x_[0], out);
      return static_cast<double>(count);
    });
  }
  // Bytes of weights and scales per second.
  double product_rate(const KernelCase& which) {
    const quant::Tile16 tile{quant::kTileRows, kCols, which.spec};
    const std::int64_t tile_bytes = tile.payload_bytes() + tile.scale_bytes();
    // The scalar kernels take seconds for a megabyte and 16 rows.
    const std::int64_t piece = which.isa == Isa::kScalar ? tile_bytes : kPieceBytes;
    const std::int64_t num_tiles = std::min(kMostOutputs / quant::kTileRows,
                                            std::max<std::int64_t>(2, piece / tile_bytes / 2 * 2));
    const quant::Tile16 matrix{num_tiles * quant::kTileRows, kCols, which.spec};
    return rate_of(kSlice, [&] {
      const std::int64_t bytes = matrix.payload_bytes() + matrix.scale_bytes();
      multiply(which, matrix, memory_.next(bytes));
      return static_cast<double>(bytes);
    });
  }

 private:
  static constexpr std::int64_t kMostOutputs = 2048;

  void multiply(const KernelCase& which, const quant::Tile16& matrix, const std::byte* at) {
    QuantView view;
    view.payload = at;
    view.scales = which.spec.has_scales() ? at + matrix.payload_bytes() : nullptr;
    view.rows = matrix.rows;
    view.cols = matrix.cols;
    view.spec = which.spec;
    view.layout = WeightLayout::kTile16;
    cpu::TileProduct product;
    product.w = cpu::tile_matrix(view);
    product.x = x_.data();
    product.x_stride = kStride;
    product.y = y_.data();
    product.y_stride = kMostOutputs;
    product.num_rows = which.num_rows;
    product.tile_end = matrix.num_tiles();
    cpu::kernels_for(which.isa).tile_product(product);
  }

  WorkingSet& memory_;
  std::vector<float> x_, y_;
};

}  // namespace

void fill_with_weights(std::span<std::byte> bytes) {
  std::mt19937_64 random(1);
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    std::uint64_t word = random();
    for (int at = 0; at < 64; at += 4) {
      const bool high = at % 8 == 4;
      std::uint64_t nibble = word >> at & 0xf;
      if (high) nibble = 0x3 | (nibble & 0x8);  // exponents just below that of 1
      if (nibble % 8 == 0) nibble |= 1;
      word = (word & ~(std::uint64_t{0xf} << at)) | nibble << at;
    }
    std::memcpy(bytes.data() + i, &word, 8);
  }
}

Result<KernelReport> bench_kernels(const KernelSuiteOptions& options) {
  KernelReport report;
  report.working_set_bytes =
      options.working_set_bytes > 0 ? options.working_set_bytes : default_working_set();
  ASSIGN_OR_RETURN(WorkingSet memory, WorkingSet::create(report.working_set_bytes),
                   "the working set; --working-set sets its size");
  KernelBench bench(memory);
  struct Samples {
    std::vector<double> bytes, read_share, fma_share;
  };
  std::vector<KernelCase> cases;
  for (const Isa isa : options.isas) {
    for (const QuantSpec& spec : kSpecs) {
      for (const int num_rows : kRowCounts) cases.push_back({isa, spec, num_rows});
    }
  }
  std::vector<Samples> samples(cases.size());
  std::vector<double> reads;
  const auto flops_per_byte = [](const KernelCase& which) {
    const quant::Tile16 tile{quant::kTileRows, kCols, which.spec};
    return 2.0 * which.num_rows * quant::kTileRows * kCols /
           static_cast<double>(tile.payload_bytes() + tile.scale_bytes());
  };
  for (int round = 0; round < options.rounds; ++round) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const double read = bench.read_rate();
      const double fma = bench.fma_rate(cases[i].isa);
      const double bytes = bench.product_rate(cases[i]);
      reads.push_back(read);
      samples[i].bytes.push_back(bytes);
      samples[i].read_share.push_back(bytes / read);
      samples[i].fma_share.push_back(bytes * flops_per_byte(cases[i]) / (2.0 * fma));
    }
  }
  report.read_bytes_per_second = median(reads);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const double bytes = median(samples[i].bytes);
    report.timings.push_back({cases[i], bytes, median(samples[i].read_share),
                              bytes * flops_per_byte(cases[i]), median(samples[i].fma_share)});
  }
  return report;
}

nlohmann::ordered_json to_json(const KernelReport& report) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const KernelTiming& timing : report.timings) {
    cases.push_back({{"isa", isa_name(timing.which.isa)},
                     {"format", quant_spec_name(timing.which.spec)},
                     {"rows", timing.which.num_rows},
                     {"gb_s", timing.bytes_per_second / 1e9},
                     {"share_of_read_bandwidth", timing.read_share},
                     {"gflop_s", timing.flops / 1e9},
                     {"share_of_fma_peak", timing.fma_share}});
  }
  return {{"suite", "kernels"},
          {"threads", 1},
          {"cols", kCols},
          {"working_set_bytes", report.working_set_bytes},
          {"read_bandwidth_gb_s", report.read_bytes_per_second / 1e9},
          {"cases", std::move(cases)}};
}

std::string to_text(const KernelReport& report) {
  std::string text =
      fmt::format("one thread, {} MiB, reads {:.2f} GB/s\n", report.working_set_bytes >> 20,
                  report.read_bytes_per_second / 1e9);
  for (const KernelTiming& timing : report.timings) {
    fmt::format_to(
        std::back_inserter(text),
        "{:7} {:14} {:2} rows  {:7.2f} GB/s  {:5.2f} of read bandwidth  {:8.2f} GFLOP/s  "
        "{:5.2f} of the multiply-add peak\n",
        isa_name(timing.which.isa), quant_spec_name(timing.which.spec), timing.which.num_rows,
        timing.bytes_per_second / 1e9, timing.read_share, timing.flops / 1e9, timing.fma_share);
  }
  return text;
}

}  // namespace stoker::tools
