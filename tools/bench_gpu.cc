#include "tools/bench_gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "core/base/median.h"
#include "core/runtime/kv_pool.h"
#include "quant/expert_block.h"
#include "tools/bench_kernels.h"

namespace stoker::tools {
namespace {

// More than the caches of a device hold, so that every call reads its weights from memory.
constexpr std::int64_t kWorkingSet = std::int64_t{400} << 20;
constexpr std::int64_t kCopyBytes = std::int64_t{1} << 30;
constexpr double kRoundSeconds = 0.02;
constexpr int kMostCalls = 400;  // of a round, before the queue of the device is full

constexpr std::int64_t kHidden = 7168, kIntermediate = 2048;
constexpr int kNumExperts = 256, kTopK = 8;

// A weight, or several of the same inputs that are asked for together.
constexpr std::size_t kMostJoined = 3;
struct LinearShape {
  const char* name;
  QuantFormat format;
  std::array<std::int64_t, kMostJoined> rows;  // of each; 0: no more weights
  std::int64_t cols;

  bool is_joined() const { return rows[1] != 0; }
  std::int64_t all_rows() const { return std::accumulate(rows.begin(), rows.end(), 0LL); }
};
constexpr LinearShape kLinears[] = {
    {"q_a", QuantFormat::kF8E4m3B128, {1536}, kHidden},
    {"kv_a", QuantFormat::kF8E4m3B128, {576}, kHidden},
    {"q_a kv_a wk", QuantFormat::kF8E4m3B128, {1536, 576, 128}, kHidden},
    {"q_b", QuantFormat::kF8E4m3B128, {24576}, 1536},
    {"q_b wq_b", QuantFormat::kF8E4m3B128, {24576, 8192}, 1536},
    {"o", QuantFormat::kF8E4m3B128, {kHidden}, 16384},
    {"dense gate", QuantFormat::kF8E4m3B128, {18432}, kHidden},
    {"dense gate, up", QuantFormat::kF8E4m3B128, {18432, 18432}, kHidden},
    {"dense down", QuantFormat::kF8E4m3B128, {kHidden}, 18432},
    {"shared gate", QuantFormat::kF8E4m3B128, {kIntermediate}, kHidden},
    {"shared gate, up", QuantFormat::kF8E4m3B128, {kIntermediate, kIntermediate}, kHidden},
    {"shared down", QuantFormat::kF8E4m3B128, {kHidden}, kIntermediate},
    {"router", QuantFormat::kBf16, {256}, kHidden},
    {"head", QuantFormat::kBf16, {129280}, kHidden},
};
constexpr std::int64_t kRowCounts[] = {1, 2, 4, 8, 16};
constexpr QuantSpec kExpertSpecs[] = {
    {QuantFormat::kInt4, 64}, {QuantFormat::kInt8, 128}, {QuantFormat::kF8E4m3B128, 128}};

// A step of so many rows that asks for nothing else.
struct BenchStep {
  explicit BenchStep(std::int64_t num_rows, Purpose purpose)
      : tokens(static_cast<std::size_t>(num_rows)), positions(static_cast<std::size_t>(num_rows)) {
    std::iota(positions.begin(), positions.end(), 0);
    pages.resize(static_cast<std::size_t>(pages_for(static_cast<int>(num_rows))));
    sequences.push_back({pages, pages});
    ranges.push_back({0, static_cast<int>(num_rows), 0, purpose});
    view = {tokens, positions, ranges, sequences, {}};
  }

  std::vector<TokenId> tokens;
  std::vector<std::int32_t> positions, pages;
  std::vector<SequencePages> sequences;
  std::vector<RowRange> ranges;
  StepView view;
};

class DeviceBench {
 public:
  DeviceBench(Backend& backend, int rounds) : backend_(backend), rounds_(rounds) {}

  // Seconds of one call of `work(i)`, which enqueues call number i: the median of the rounds.
  Result<double> time(const std::function<void(int)>& work) {
    ASSIGN_OR_RETURN(double one, time_calls(work, 3));
    const int calls = std::clamp(static_cast<int>(kRoundSeconds / one), 3, kMostCalls);
    std::vector<double> seconds;
    for (int round = 0; round < rounds_; ++round) {
      ASSIGN_OR_RETURN(one, time_calls(work, calls));
      seconds.push_back(one);
    }
    return median(std::move(seconds));
  }

  Result<double> copy_rate() {
    ASSIGN_OR_RETURN(const Tensor from, backend_.allocate(DType::kU8, 1, kCopyBytes));
    ASSIGN_OR_RETURN(const Tensor to, backend_.allocate(DType::kU8, 1, kCopyBytes));
    ASSIGN_OR_RETURN(const double seconds,
                     time([&](int) { backend_.copy(to.view(), from.view()); }));
    return 2.0 * static_cast<double>(kCopyBytes) / seconds;
  }

  // One shape with every number of rows.
  Status linear(const LinearShape& shape, std::span<const std::int64_t> row_counts, Purpose purpose,
                std::vector<DeviceTiming>& out) {
    QuantView host;  // all rows
    host.rows = shape.all_rows();
    host.cols = shape.cols;
    host.spec.format = shape.format;
    std::vector<std::byte> bytes(static_cast<std::size_t>(host.stored_bytes()));
    fill_with_weights(bytes);
    host.payload = bytes.data();
    host.scales = bytes.data() + host.rows * shape.cols * host.spec.element_bits() / 8;
    std::vector<std::vector<WeightPtr>> sets;
    do {
      std::vector<WeightPtr>& set = sets.emplace_back();
      for (const std::int64_t rows : shape.rows) {
        if (rows == 0) break;
        QuantView one = host;
        one.rows = rows;
        ASSIGN_OR_RETURN(WeightPtr weight, backend_.adopt(one));
        set.push_back(std::move(weight));
      }
    } while (static_cast<std::int64_t>(sets.size()) * host.stored_bytes() < kWorkingSet);
    const DType dtype = backend_.activation_dtype();
    for (const std::int64_t num_rows : row_counts) {
      const BenchStep step(num_rows, purpose);
      RETURN_IF_ERROR(backend_.begin_step(step.view));
      ASSIGN_OR_RETURN(const Tensor x, inputs(num_rows, shape.cols));
      ASSIGN_OR_RETURN(const Tensor y, backend_.allocate(dtype, num_rows, host.rows));
      ASSIGN_OR_RETURN(const double seconds, time([&](int call) {
                         const auto& set = sets[static_cast<std::size_t>(call) % sets.size()];
                         std::array<LinearOutput, kMostJoined> outputs;
                         std::int64_t col = 0;
                         for (std::size_t i = 0; i < set.size(); ++i) {
                           outputs[i] = {set[i].get(), y.view().col_slice(col, set[i]->rows())};
                           col += set[i]->rows();
                         }
                         backend_.linears(step.view, std::span(outputs).first(set.size()),
                                          x.view());
                       }));
      const double products = static_cast<double>(num_rows * host.rows * shape.cols);
      out.push_back({shape.name, num_rows, seconds, host.stored_bytes(), 2.0 * products});
    }
    return {};
  }

  // The routed experts of one token; `how` names the arithmetic.
  Status experts(const QuantSpec& spec, const char* how, std::vector<DeviceTiming>& out) {
    const quant::ExpertBlocks layout(kHidden, kIntermediate, spec);
    const std::int64_t set_bytes = kTopK * layout.expert_bytes();
    const int num_sets = static_cast<int>(kWorkingSet / set_bytes + 1);
    std::vector<std::byte> bytes(static_cast<std::size_t>(set_bytes));
    fill_with_weights(bytes);
    const std::vector<std::int32_t> rows = {0};
    std::vector<ExpertUse> uses(kTopK);
    for (int e = 0; e < kTopK; ++e) uses[static_cast<std::size_t>(e)] = {e, rows, {}, 1, e, false};
    std::vector<Tensor> sets;
    std::vector<std::vector<ExpertPart>> parts(static_cast<std::size_t>(num_sets));
    for (auto& of_set : parts) {
      ASSIGN_OR_RETURN(Tensor set, backend_.allocate(DType::kU8, 1, set_bytes));
      backend_.copy_in(set.view(), bytes.data());
      for (int e = 0; e < kTopK; ++e) {
        const auto* const base =
            static_cast<const std::byte*>(set.view().data) + e * layout.expert_bytes();
        for (int b = 0; b < layout.num_blocks(); ++b) {
          of_set.push_back(layout.part(b, base + layout.block(b).offset, backend_.device()));
          of_set.back().use = e;
        }
      }
      of_set = in_runs(of_set);
      sets.push_back(std::move(set));
    }
    const DType dtype = backend_.activation_dtype();
    const BenchStep step(1, Purpose::kDecode);
    RETURN_IF_ERROR(backend_.begin_step(step.view));
    ASSIGN_OR_RETURN(const Tensor x, inputs(1, kHidden));
    ASSIGN_OR_RETURN(const Tensor hidden, backend_.allocate(dtype, kTopK, kIntermediate));
    ASSIGN_OR_RETURN(const Tensor y, backend_.allocate(dtype, kTopK, kHidden));
    const auto measure = [&](const char* what, bool gate_up, bool down) -> Status {
      std::vector<std::vector<ExpertPart>> chosen(parts.size());
      for (std::size_t i = 0; i < parts.size(); ++i) {
        std::copy_if(parts[i].begin(), parts[i].end(), std::back_inserter(chosen[i]),
                     [&](const ExpertPart& part) {
                       return part.half == ExpertHalf::kGateUp ? gate_up : down;
                     });
      }
      ASSIGN_OR_RETURN(const double seconds, time([&](int call) {
                         const auto which = static_cast<std::size_t>(call) % chosen.size();
                         backend_.experts(step.view,
                                          {x.view(), hidden.view(), y.view(), uses, chosen[which]});
                       }));
      const int matrices = (gate_up ? 2 : 0) + (down ? 1 : 0);
      out.push_back({fmt::format("experts {}{} {}", quant_spec_name(spec), how, what), 1, seconds,
                     set_bytes * matrices / 3, 2.0 * kTopK * kHidden * kIntermediate * matrices});
      return {};
    };
    RETURN_IF_ERROR(measure("gate/up", true, false));
    RETURN_IF_ERROR(measure("down", false, true));
    return measure("all", true, true);
  }

  // All routed experts of a layer, for so many rows of prefill, each of which chooses at random.
  Status prefill_experts(const QuantSpec& spec, std::int64_t num_rows,
                         std::vector<DeviceTiming>& out) {
    std::vector<std::vector<std::int32_t>> rows(kNumExperts);
    std::mt19937 random(1);
    for (std::int32_t row = 0; row < num_rows; ++row) {
      std::set<std::size_t> chosen;
      while (chosen.size() < kTopK) chosen.insert(random() % kNumExperts);
      for (const std::size_t expert : chosen) rows[expert].push_back(row);
    }
    const quant::ExpertBlocks layout(kHidden, kIntermediate, spec);
    std::vector<std::byte> bytes(static_cast<std::size_t>(layout.expert_bytes()));
    fill_with_weights(bytes);
    ASSIGN_OR_RETURN(const Tensor all,
                     backend_.allocate(DType::kU8, kNumExperts, layout.expert_bytes()));
    std::vector<ExpertUse> uses;
    std::vector<ExpertPart> parts;
    int num_slots = 0;
    for (int e = 0; e < kNumExperts; ++e) {
      const TensorView expert = all.view().row_slice(e, 1);
      backend_.copy_in(expert, bytes.data());
      const auto& chose = rows[static_cast<std::size_t>(e)];
      if (chose.empty()) continue;
      for (int b = 0; b < layout.num_blocks(); ++b) {
        parts.push_back(
            layout.part(b, static_cast<const std::byte*>(expert.data) + layout.block(b).offset,
                        backend_.device()));
        parts.back().use = static_cast<int>(uses.size());
      }
      uses.push_back({e, chose, {}, 0, num_slots, false});
      num_slots += static_cast<int>(chose.size());
    }
    const DType dtype = backend_.activation_dtype();
    const BenchStep step(num_rows, Purpose::kPrefill);
    RETURN_IF_ERROR(backend_.begin_step(step.view));
    ASSIGN_OR_RETURN(const Tensor x, inputs(num_rows, kHidden));
    ASSIGN_OR_RETURN(const Tensor hidden, backend_.allocate(dtype, num_slots, kIntermediate));
    ASSIGN_OR_RETURN(const Tensor y, backend_.allocate(dtype, num_slots, kHidden));
    ASSIGN_OR_RETURN(const double seconds, time([&](int) {
                       backend_.experts(step.view,
                                        {x.view(), hidden.view(), y.view(), uses, parts});
                     }));
    out.push_back({fmt::format("experts {} prefill", quant_spec_name(spec)), num_rows, seconds,
                   static_cast<std::int64_t>(uses.size()) * layout.expert_bytes(),
                   6.0 * num_slots * static_cast<double>(kHidden * kIntermediate)});
    return {};
  }

 private:
  Result<Tensor> inputs(std::int64_t num_rows, std::int64_t cols) {
    const DType dtype = backend_.activation_dtype();
    ASSIGN_OR_RETURN(Tensor x, backend_.allocate(dtype, num_rows, cols));
    std::vector<std::byte> bytes(x.view().bytes());
    fill_with_weights(bytes);
    backend_.copy_in(x.view(), bytes.data());
    RETURN_IF_ERROR(backend_.finish());
    return x;
  }

  Result<double> time_calls(const std::function<void(int)>& work, int calls) {
    using Clock = std::chrono::steady_clock;
    RETURN_IF_ERROR(backend_.finish());
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) work(i);
    RETURN_IF_ERROR(backend_.finish());
    return std::chrono::duration<double>(Clock::now() - start).count() / calls;
  }

  Backend& backend_;
  int rounds_;
};

}  // namespace

Result<DeviceReport> bench_device_kernels(Backend& backend, Backend* fast_experts,
                                          const DeviceSuiteOptions& options) {
  DeviceBench bench(backend, options.rounds);
  DeviceReport report;
  ASSIGN_OR_RETURN(report.copy_bytes_per_second, bench.copy_rate());
  for (const LinearShape& shape : kLinears) {
    RETURN_IF_ERROR(bench.linear(shape, kRowCounts, Purpose::kDecode, report.timings));
  }
  for (const QuantSpec& spec : kExpertSpecs) {
    RETURN_IF_ERROR(bench.experts(spec, "", report.timings));
    if (fast_experts == nullptr) continue;
    RETURN_IF_ERROR(
        DeviceBench(*fast_experts, options.rounds).experts(spec, " fast", report.timings));
  }
  if (options.prefill_rows > 0) {
    const std::int64_t row_counts[] = {options.prefill_rows};
    for (const LinearShape& shape : kLinears) {
      if (shape.is_joined()) continue;          // one after another
      if (shape.all_rows() > 100000) continue;  // the head sees few rows
      RETURN_IF_ERROR(bench.linear(shape, row_counts, Purpose::kPrefill, report.timings));
    }
    // In the defined arithmetic, which F32 inputs keep, they would take seconds.
    if (backend.activation_dtype() == DType::kBf16) {
      for (const QuantSpec& spec : kExpertSpecs) {
        RETURN_IF_ERROR(bench.prefill_experts(spec, options.prefill_rows, report.timings));
      }
    }
  }
  return report;
}

nlohmann::ordered_json to_json(const DeviceReport& report) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const DeviceTiming& timing : report.timings) {
    const double rate = static_cast<double>(timing.bytes) / timing.seconds;
    cases.push_back({{"kernel", timing.kernel},
                     {"rows", timing.rows},
                     {"us", timing.seconds * 1e6},
                     {"bytes", timing.bytes},
                     {"gb_s", rate / 1e9},
                     {"share_of_copy_bandwidth", rate / report.copy_bytes_per_second},
                     {"tflop_s", timing.flops / timing.seconds / 1e12}});
  }
  return {{"suite", "kernels"},
          {"copy_bandwidth_gb_s", report.copy_bytes_per_second / 1e9},
          {"cases", std::move(cases)}};
}

std::string to_text(const DeviceReport& report) {
  std::string text =
      fmt::format("copies {:.0f} GB/s, read and written\n", report.copy_bytes_per_second / 1e9);
  for (const DeviceTiming& timing : report.timings) {
    const double floor = static_cast<double>(timing.bytes) / report.copy_bytes_per_second;
    fmt::format_to(std::back_inserter(text),
                   "{:30} {:5} rows  {:9.1f} us, floor {:8.1f}  {:5.2f} of bandwidth  {:7.1f} "
                   "TFLOP/s\n",
                   timing.kernel, timing.rows, timing.seconds * 1e6, floor * 1e6,
                   floor / timing.seconds, timing.flops / timing.seconds / 1e12);
  }
  return text;
}

}  // namespace stoker::tools
