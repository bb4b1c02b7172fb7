// Selection and attention beside their floors: what the card reads and multiplies in the same run.
// Inputs rotate, so that nothing is found in the L2 cache that a layer of a model would not find
// there; times are medians of replayed CUDA graphs. Prints one line per case. With an argument
// "in-order", no kernel starts before the one before is complete.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "gpu/error.h"
#include "gpu/kernels/attend_steps.h"
#include "gpu/kernels/common/mma.cuh"
#include "gpu/kernels/common/rows.cuh"
#include "gpu/native.h"

namespace stoker::gpu {
namespace {

constexpr int kReplays = 9;
constexpr int kHeads = 128, kNope = 128, kValue = 128;
constexpr int kTopK = 2048;
constexpr int kSequences = 64, kSequenceTokens = 8192;  // 604 MB of latents
constexpr int kIndexHeads = 64, kIndexWidth = 128, kIndexTokens = 131072, kIndexSequences = 4;

void must(const Status& status) { CHECK(status.ok(), "{}", status.error().message()); }
void must(cudaError_t error) { must(cuda_status(error, "bench")); }

// ---- The card's own rates ----

__global__ void read_through(const uint4* data, std::int64_t count, unsigned* out) {
  unsigned sum = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
#pragma unroll 8
  for (std::int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint4 four = __ldg(data + i);
    sum += four.x ^ four.y ^ four.z ^ four.w;
  }
  if (sum == 0x12345678u) *out = sum;
}

constexpr int kPeakLoops = 2000, kPeakChains = 8;
__global__ void multiply_only(float* out) {
  float c[kPeakChains][4] = {};
  unsigned a[4];
  for (unsigned i = 0; i < 4; ++i) a[i] = 0x3f803f80u + threadIdx.x * 7919u % 64u * (i + 1);
  for (int i = 0; i < kPeakLoops; ++i) {
#pragma unroll
    for (auto& chain : c) mma(chain, a, a[0], a[1]);
  }
  float sum = 0.0f;
  for (const auto& chain : c) sum += chain[0] + chain[1] + chain[2] + chain[3];
  if (sum == 1.0f) *out = sum;
}

// ---- Device data ----

DeviceBuffer buffer(std::int64_t bytes) {
  auto made = DeviceBuffer::create(bytes);
  CHECK(made.ok(), "{}", made.error().message());
  return std::move(made).value();
}

template <typename T>
DeviceBuffer upload(const std::vector<T>& values) {
  DeviceBuffer made = buffer(static_cast<std::int64_t>(values.size() * sizeof(T)));
  must(made.upload(0, values.data(), made.bytes()));
  return made;
}

// Values between -range and range; one megabyte of them over and over.
DeviceBuffer random_bf16(std::int64_t count, float range) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> values(-range, range);
  std::vector<bf16> piece(std::size_t{1} << 19);
  for (bf16& value : piece) value = to_bf16(values(random));
  DeviceBuffer made = buffer(count * 2);
  for (std::int64_t at = 0; at < made.bytes(); at += static_cast<std::int64_t>(piece.size()) * 2) {
    must(made.upload(
        at, piece.data(),
        std::min<std::int64_t>(made.bytes() - at, static_cast<std::int64_t>(piece.size()) * 2)));
  }
  return made;
}

std::vector<std::int32_t> shuffled_pages(int count) {
  std::vector<std::int32_t> pages(static_cast<std::size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(2));
  return pages;
}

template <typename T>
T* as(const DeviceBuffer& memory) {
  return reinterpret_cast<T*>(memory.data());
}

class Bench {
 public:
  explicit Bench(Stream stream) : stream_(std::move(stream)) {}

  void run() {
    measure_card();
    attention();
    scores();
    selection();
  }

 private:
  // Microseconds of one of `count` calls of enqueue(i).
  double time_of(int count, const std::function<void(int)>& enqueue) {
    const cudaStream_t stream = native(stream_);
    enqueue(0);  // allocations and attributes
    must(stream_.synchronize());
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < count; ++i) enqueue(i);
    must(cudaStreamEndCapture(stream, &graph));
    must(cudaGraphInstantiate(&replay, graph, 0));
    cudaEvent_t start, stop;
    must(cudaEventCreate(&start));
    must(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i <= kReplays; ++i) {
      must(cudaEventRecord(start, stream));
      must(cudaGraphLaunch(replay, stream));
      must(cudaEventRecord(stop, stream));
      must(cudaEventSynchronize(stop));
      float milliseconds;
      must(cudaEventElapsedTime(&milliseconds, start, stop));
      if (i > 0) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    must(cudaEventDestroy(start));
    must(cudaEventDestroy(stop));
    must(cudaGraphExecDestroy(replay));
    must(cudaGraphDestroy(graph));
    return times[times.size() / 2] * 1e3 / count;
  }

  void report(const std::string& what, double us, double bytes, double flops) const {
    const double read_us = bytes / read_rate_ * 1e6, flop_us = flops / flop_rate_ * 1e6;
    fmt::print("{:46} {:9.2f} us  read floor {:8.2f} ({:4.2f})  mma floor {:8.2f} ({:4.2f})\n",
               what, us, read_us, read_us / us, flop_us, flop_us / us);
  }

  void measure_card() {
    cudaDeviceProp card;
    must(cudaGetDeviceProperties(&card, 0));
    constexpr std::int64_t kBytes = std::int64_t{4} << 30;
    const DeviceBuffer memory = buffer(kBytes), out = buffer(4);
    const int blocks = card.multiProcessorCount * 8;
    const double us = time_of(2, [&](int) {
      read_through<<<static_cast<unsigned>(blocks), 512, 0, native(stream_)>>>(
          as<const uint4>(memory), kBytes / 16, as<unsigned>(out));
    });
    read_rate_ = kBytes / us * 1e6;
    const int peak_blocks = card.multiProcessorCount * 4;
    const double mma_us = time_of(4, [&](int) {
      multiply_only<<<static_cast<unsigned>(peak_blocks), 256, 0, native(stream_)>>>(
          as<float>(out));
    });
    flop_rate_ =
        2.0 * kMmaM * kMmaN * kMmaK * kPeakLoops * kPeakChains * 8 * peak_blocks / mma_us * 1e6;
    fmt::print("{}: reads {:.0f} GB/s, mma.sync {:.0f} TFLOP/s\n", card.name, read_rate_ / 1e9,
               flop_rate_ / 1e12);
  }

  void attention() {
    constexpr int kRowSets = 2 * kSequences;  // so that any row may be the first
    constexpr int kPages = kSequenceTokens / kPageTokens;
    constexpr int kWeights = 4, kMostRows = 64;
    const DeviceBuffer cache =
        random_bf16(std::int64_t{kSequences} * kSequenceTokens * kLatentWidth, 1.0f);
    const DeviceBuffer pages = upload(shuffled_pages(kSequences * kPages));
    const DeviceBuffer queries =
        random_bf16(std::int64_t{kMostRows} * kHeads * (kNope + kLatentRope), 1.0f);
    const DeviceBuffer out = buffer(std::int64_t{kMostRows} * kHeads * kValue * 2);
    constexpr std::int64_t kWeightBytes = std::int64_t{kHeads} * (kNope + kValue) * kLatentDim;
    std::mt19937 random(3);
    std::vector<std::uint8_t> codes(kWeightBytes);
    for (auto& code : codes) code = static_cast<std::uint8_t>(random() % 127 | random() % 2 << 7);
    std::vector<DeviceBuffer> weights;
    for (int i = 0; i < kWeights; ++i) weights.push_back(upload(codes));
    const DeviceBuffer weight_scales = upload(std::vector<float>(kWeightBytes / 16384, 1e-4f));
    // Every row: 2048 of the positions of a sequence of its own.
    std::vector<std::int32_t> first(kRowSets), positions(kRowSets), chosen, counts(kRowSets, kTopK);
    std::vector<std::int32_t> all(kSequenceTokens);
    std::iota(all.begin(), all.end(), 0);
    for (int row = 0; row < kRowSets; ++row) {
      first[static_cast<std::size_t>(row)] = row % kSequences * kPages;
      positions[static_cast<std::size_t>(row)] = kSequenceTokens - 1;
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + kTopK);
      chosen.insert(chosen.end(), all.begin(), all.begin() + kTopK);
    }
    const DeviceBuffer first_memory = upload(first), position_memory = upload(positions);
    const DeviceBuffer chosen_memory = upload(chosen), count_memory = upload(counts);
    DeviceBuffer scratch;
    RowRange range;
    const DeviceBuffer step_queries =
        random_bf16(std::int64_t{kMostRows} * kHeads * kLatentWidth, 0.1f);
    const DeviceBuffer step_sums =
        buffer(std::int64_t{kMostRows} * kTopK / kDecodeSplitKeys * kHeads * (kLatentDim + 2) *
               static_cast<int>(sizeof(float)));

    const auto rows_of = [&](int begin, int num_rows, bool sparse,
                             Purpose purpose = Purpose::kDecode) {
      AttendRowsParams p;
      p.dims = {kHeads, kNope, kLatentRope, kValue, kLatentDim, 0.135f};
      p.queries = make_view(queries.data(), DType::kBf16, num_rows, kHeads * (kNope + kLatentRope));
      p.kv_b.payload = weights[static_cast<std::size_t>(begin % kWeights)].data();
      p.kv_b.scales = weight_scales.data();
      p.kv_b.rows = kHeads * (kNope + kValue);
      p.kv_b.cols = kLatentDim;
      p.kv_b.spec = {QuantFormat::kF8E4m3B128, 128};
      p.cache = {make_view(cache.data(), DType::kBf16, std::int64_t{kSequences} * kSequenceTokens,
                           kLatentWidth),
                 latent_row(p.dims)};
      p.step.num_rows = num_rows;
      p.step.positions = as<const std::int32_t>(position_memory) + begin;
      p.step.latent_first = as<const std::int32_t>(first_memory) + begin;
      p.step.latent_pages = as<const std::int32_t>(pages);
      range = {0, num_rows, 0, purpose};
      p.ranges = std::span(&range, 1);
      p.max_visible = kSequenceTokens;
      p.sparse = sparse;
      p.selection = {make_view(as<std::int32_t>(chosen_memory) + std::int64_t{begin} * kTopK,
                               DType::kI32, num_rows, kTopK),
                     make_view(as<std::int32_t>(count_memory) + begin, DType::kI32, num_rows, 1)};
      p.out = make_view(out.data(), DType::kBf16, num_rows, kHeads * kValue);
      must(scratch.grow(attend_scratch_bytes(p)));
      p.scratch = scratch.data();
      return p;
    };
    const auto steps_of = [&](int begin, int num_rows) {
      AttendLatentParams a{};
      a.rows = rows_of(begin, num_rows, true);
      a.num_rows = num_rows;
      a.split_keys = kDecodeSplitKeys;
      a.max_splits = kTopK / kDecodeSplitKeys;
      const std::int64_t heads = std::int64_t{num_rows} * kHeads;
      a.queries = as<bf16>(step_queries);
      a.split_sums = as<float>(step_sums);
      a.split_stats =
          reinterpret_cast<SplitStat*>(a.split_sums + heads * a.max_splits * kLatentDim);
      return a;
    };
    for (const int num_rows : {1, 2, 4, 8, 16, 32, 64}) {
      const int calls = std::max(4, kSequences / num_rows);
      const auto begin_of = [&](int i) { return i * num_rows % kSequences; };
      const double keys = 2.0 * num_rows * kTopK * kLatentWidth;
      const double flops = 2.0 * num_rows * kTopK * kHeads * double{kLatentWidth + kLatentDim};
      const double projection = 2.0 * num_rows * kHeads * kNope * double{kLatentDim};
      const std::string rows = fmt::format("{} rows", num_rows);
      rows_of(0, num_rows, true);
      report("attend, 2048 keys, all steps, " + rows,
             time_of(calls,
                     [&](int i) {
                       must(launch_attend(rows_of(begin_of(i), num_rows, true), stream_));
                     }),
             keys + kWeightBytes, flops + 2 * projection);
      report("  queries into latent space, " + rows,
             time_of(calls,
                     [&](int i) {
                       must(launch_absorb_queries(steps_of(begin_of(i), num_rows), stream_));
                     }),
             kWeightBytes / 2, projection);
      report("  attention in latent space, " + rows,
             time_of(calls,
                     [&](int i) {
                       must(launch_attend_latent(steps_of(begin_of(i), num_rows), stream_));
                     }),
             keys, flops);
      report("  values out of latent space, " + rows,
             time_of(calls,
                     [&](int i) {
                       must(launch_project_values(steps_of(begin_of(i), num_rows), stream_));
                     }),
             kWeightBytes / 2, projection);
    }
    rows_of(0, kMostRows, true, Purpose::kPrefill);
    report("attend, 2048 keys, prefill, all steps, 64 rows",
           time_of(4,
                   [&](int) {
                     must(launch_attend(rows_of(0, kMostRows, true, Purpose::kPrefill), stream_));
                   }),
           2.0 * kMostRows * kTopK * kLatentWidth + kWeightBytes,
           2.0 * kMostRows * kHeads *
               (double{kTopK} * (kLatentWidth + kLatentDim) + 2.0 * kNope * kLatentDim));
    const double dense = 2.0 * kSequenceTokens;
    rows_of(0, 4, false);
    report("attend, dense 8192 keys, all steps, 4 rows",
           time_of(8, [&](int i) { must(launch_attend(rows_of(i * 4, 4, false), stream_)); }),
           4 * dense * kLatentWidth + kWeightBytes,
           4 * dense * kHeads * (kLatentWidth + kLatentDim));
  }

  void scores() {
    constexpr int kPages = kIndexTokens / kPageTokens;
    constexpr int kMostRows = 64;
    const DeviceBuffer cache =
        random_bf16(std::int64_t{kIndexSequences} * kIndexTokens * kIndexWidth, 1.0f);
    const DeviceBuffer pages = upload(shuffled_pages(kIndexSequences * kPages));
    const DeviceBuffer queries =
        random_bf16(std::int64_t{kMostRows} * kIndexHeads * kIndexWidth, 1.0f);
    const DeviceBuffer weights = upload(std::vector<float>(kMostRows * kIndexHeads, 0.01f));
    const DeviceBuffer out = buffer(std::int64_t{kMostRows} * kIndexTokens * 4);
    std::vector<std::int32_t> first;  // of kMostRows rows for each sequence
    for (int s = 0; s < kIndexSequences; ++s) first.insert(first.end(), kMostRows, s * kPages);
    const DeviceBuffer first_memory = upload(first);
    for (const int num_tokens : {4096, 16384, kIndexTokens}) {
      const DeviceBuffer positions = upload(std::vector<std::int32_t>(kMostRows, num_tokens - 1));
      for (const int num_rows : {1, 2, 4, 64}) {
        IndexScoreParams p;
        p.dims = {kIndexHeads, kIndexWidth, kTopK};
        p.queries = make_view(queries.data(), DType::kBf16, num_rows, kIndexHeads * kIndexWidth);
        p.weights = make_view(weights.data(), DType::kF32, num_rows, kIndexHeads);
        p.cache = {make_view(cache.data(), DType::kBf16,
                             std::int64_t{kIndexSequences} * kIndexTokens, kIndexWidth),
                   index_key_row(p.dims)};
        p.step.positions = as<const std::int32_t>(positions);
        p.step.index_pages = as<const std::int32_t>(pages);
        p.row_begin = 0;
        p.num_rows = num_rows;
        p.max_visible = num_tokens;
        p.scores = as<float>(out);
        p.score_stride = num_tokens;
        const auto enqueue = [&](int i) {
          p.step.index_first =
              as<const std::int32_t>(first_memory) + i % kIndexSequences * kMostRows;
          must(launch_index_scores(p, stream_));
        };
        report(fmt::format("scores, {} keys, {} rows of one sequence", num_tokens, num_rows),
               time_of(8, enqueue), 2.0 * num_tokens * kIndexWidth + 4.0 * num_rows * num_tokens,
               2.0 * num_rows * num_tokens * kIndexHeads * kIndexWidth);
      }
    }
  }

  void selection() {
    constexpr int kMostRows = 64, kSets = 4;
    const DeviceBuffer out = buffer(kMostRows * kTopK * 4), counts = buffer(kMostRows * 4);
    std::mt19937 random(4);
    for (const float mean : {0.0f, 30.0f}) {  // one digit apart, and many digits shared
      std::normal_distribution<float> values(mean, 1.0f);
      std::vector<float> host(std::size_t{kSets} * kIndexTokens);
      for (float& value : host) value = values(random);
      DeviceBuffer scores = buffer(std::int64_t{kMostRows} * kIndexTokens * 4);
      const auto piece = static_cast<std::int64_t>(host.size() * sizeof(float));
      for (std::int64_t at = 0; at < scores.bytes(); at += piece) {
        must(scores.upload(at, host.data(), piece));
      }
      for (const int num_tokens : {4096, 16384, kIndexTokens}) {
        const DeviceBuffer positions = upload(std::vector<std::int32_t>(kMostRows, num_tokens - 1));
        for (const int num_rows : {1, 64}) {
          TopKParams p;
          p.top_k = kTopK;
          p.positions = as<const std::int32_t>(positions);
          p.row_begin = 0;
          p.num_rows = num_rows;
          p.scores = as<const float>(scores);
          p.score_stride = num_tokens;
          p.out = {make_view(out.data(), DType::kI32, kMostRows, kTopK),
                   make_view(counts.data(), DType::kI32, kMostRows, 1)};
          report(fmt::format("top 2048 of {}, mean {}, {} rows", num_tokens, mean, num_rows),
                 time_of(8, [&](int) { must(launch_top_k(p, stream_)); }),
                 4.0 * num_rows * num_tokens, 0);
        }
      }
    }
  }

  Stream stream_;
  double read_rate_ = 1, flop_rate_ = 1;  // per second
};

}  // namespace
}  // namespace stoker::gpu

int main(int argc, char** argv) {
  const bool in_order = argc > 1 && std::string_view(argv[1]) == "in-order";
  auto stream = stoker::gpu::Stream::create(!in_order && stoker::gpu::kernels_may_overlap());
  if (!stream.ok()) {
    fmt::print(stderr, "{}\n", stream.error().message());
    return 1;
  }
  stoker::gpu::Bench(std::move(stream).value()).run();
  return 0;
}
