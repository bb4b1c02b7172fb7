// bench --suite kernels: the products of routed experts in decode, one thread, out of memory that
// no cache holds, beside what the memory and the multiply-adds of that thread could do.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/tensor/quant_view.h"
#include "cpu/isa.h"

namespace stoker::tools {

// Random bytes that are finite non-zero weights, near 1, in every format, and non-zero nibbles.
void fill_with_weights(std::span<std::byte> bytes);

struct KernelCase {
  Isa isa = Isa::kScalar;
  QuantSpec spec;
  int num_rows = 1;  // inputs that share a reading of the weights
};

// Medians over the rounds. Shares are taken in each round against a reference measured right
// before.
struct KernelTiming {
  KernelCase which;
  double bytes_per_second = 0.0;  // weights and scales, read once per call whatever num_rows
  double read_share = 0.0;        // of what the thread reads without computing
  double flops = 0.0;             // two per weight and row
  double fma_share = 0.0;         // of what the instruction set's fused multiply-adds give
};

struct KernelReport {
  std::int64_t working_set_bytes = 0;
  double read_bytes_per_second = 0.0;
  std::vector<KernelTiming> timings;
};

struct KernelSuiteOptions {
  std::vector<Isa> isas;
  std::int64_t working_set_bytes = 0;  // 0: 512 MiB or three times the last cache
  int rounds = 5;
};
// Two seconds a case and round at most, scalar included.
Result<KernelReport> bench_kernels(const KernelSuiteOptions& options);

nlohmann::ordered_json to_json(const KernelReport& report);
// A line per case.
std::string to_text(const KernelReport& report);

}  // namespace stoker::tools
