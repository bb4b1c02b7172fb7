// Scratch of a backend: memory that its operations write and read in stream order, so that one of
// each kind is enough. And how large each gets, in one place for those who use it and those who
// reserve it before anything is loaded.
#pragma once

#include <array>

#include "core/tensor/quant_view.h"
#include "gpu/device.h"
#include "gpu/factory.h"

namespace stoker::gpu {

struct ScratchBuffers {
  DeviceBuffer widened_weight;   // BF16 [outputs at once, inputs]
  DeviceBuffer linear_partials;  // as linear_few_scratch() says
  DeviceBuffer linear_counters;  // the same; zeros between launches
  DeviceBuffer index_scores;     // F32 [rows at once, positions]
  DeviceBuffer index_queries;    // BF16 [rows at once, heads * dim]
  DeviceBuffer attention;        // as attend_scratch_bytes() says
  DeviceBuffer combine_slots;    // slots, weights [T, top_k] each

  // Grows what is smaller than `sizes` say. expert_uploads and step_tables lie elsewhere.
  Status reserve(const CudaScratch& sizes);
  // What there is, with the other two 0.
  CudaScratch held() const;
  // Which memory each is. Addresses would not tell: memory that has grown may lie where it lay, and
  // graphs with copies in them are not to be launched then.
  using Allocations = std::array<std::uint64_t, 7>;
  Allocations allocations() const;
};

// Outputs of a weight of `cols` inputs that are widened at once: a panel small beside the weight.
std::int64_t widened_rows(std::int64_t rows, std::int64_t cols);
std::int64_t widened_bytes(std::int64_t rows, std::int64_t cols);

// Rows whose scores are held at once: at most 42 MB at 163840 positions.
inline constexpr int kScoreRows = 64;
// F32s from one row of scores to the next, for rows that see at most that many positions.
std::int64_t score_stride(int most_visible);
std::int64_t score_bytes(int num_rows, int most_visible);
std::int64_t index_query_bytes(int num_rows, std::int64_t cols);

// Of [T, top_k] choices.
std::int64_t combine_bytes(std::int64_t num_choices);

}  // namespace stoker::gpu
