// Latent attention and the lightning indexer over cached rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/team.h"
#include "core/interface/backend.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace stoker::cpu {

// Every row and head is computed alone, key by key in ascending position, in blocks of fixed size:
// results depend neither on how the work is shared out nor on the other rows. Not thread-safe: the
// driver thread owns it.
class Attention {
 public:
  Attention(Team& team, const Kernels& kernels, DType activations);

  void attend(const StepView& step, const AttendParams& params);
  void select(const StepView& step, const SelectParams& params);

 private:
  // A row of the step and where its keys lie.
  struct Row {
    std::int32_t row;
    std::int32_t num_keys;
    std::span<const std::int32_t> pages;
    const std::int32_t* positions;  // null: 0 .. num_keys - 1
  };
  struct Worker {
    Scratch scores, query, keys, mixed, narrow, product;
    std::vector<std::int32_t> histogram;
  };

  void attend_heads(const AttendParams& params, const Row& row, int head_begin, int num_heads,
                    Worker& worker);
  void absorb_query(const AttendParams& params, const Row& row, int head, float* query,
                    Worker& worker);
  // Keys [begin, + count) of a row, widened to F32 [count, stride].
  void load_keys(const KvLayer& cached, const Row& row, std::int64_t begin, int count,
                 std::int64_t stride, float* keys);
  // Indexer queries of a row, F32 [heads, stride].
  void widen_queries(const SelectParams& params, const Row& row, std::int64_t stride, float* query);
  // `query`: null, or what widen_queries() gave.
  void score_chunk(const SelectParams& params, const Row& row, const float* query,
                   std::int64_t begin, int count, float* scores, Worker& worker);

  Team& team_;
  const Kernels& kernels_;
  DType activations_;
  std::vector<Worker> workers_;
  std::vector<Row> rows_;
  Scratch index_scores_;
  Scratch index_queries_;  // of the rows whose scores are held, where keys are FP8
};

}  // namespace stoker::cpu
