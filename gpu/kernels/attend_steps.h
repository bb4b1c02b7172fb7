// The steps of absorbed attention on tensor cores, for BF16 and the latent dimensions that all
// published models with multi-head latent attention share.
#pragma once

#include "core/base/hd.h"
#include "gpu/launch.h"
#include "quant/kv_rows.h"

namespace stoker::gpu {

inline constexpr int kLatentDim = 512;
inline constexpr int kLatentRope = 64;
inline constexpr int kLatentWidth = kLatentDim + kLatentRope;  // of a cached row
inline constexpr quant::KvRowLayout kFp8LatentRow = quant::kv_row_layout({kLatentDim, kLatentRope});
// Keys of a split, at least. A decoded row is often alone, and its splits are all the blocks there
// are; rows of a prompt make blocks enough, and sums of splits would only be written and read.
inline constexpr int kDecodeSplitKeys = 256;
inline constexpr int kPrefillSplitKeys = 4096;
inline constexpr int kMostSplits = 16;  // bounds the memory for sums of splits

// What a split's sums are relative to: its highest score, in powers of two; and its sum of weights.
struct SplitStat {
  float highest, total;
};

// Rows [row_begin, + num_rows) of `rows`.
struct AttendLatentParams {
  AttendRowsParams rows;
  int row_begin, num_rows;
  int split_keys;          // by the rows' purpose
  int max_splits;          // of a row
  bf16* queries;           // [num_rows, num_heads, kLatentWidth]; results take the place of latents
  float* split_sums;       // [num_rows, max_splits, num_heads, kLatentDim]
  SplitStat* split_stats;  // [num_rows, max_splits, num_heads]

  // Whether launch_project_values() merges what the splits of the keys left: a single row would
  // wait for one launch more, of many rows a launch of its own merges more at once.
  STOKER_HD bool projection_merges() const { return num_rows == 1 && max_splits > 1; }
};

// queries = q_nope . Wk beside q_rope
Status launch_absorb_queries(const AttendLatentParams& params, const Stream& stream);
// queries = softmax over the visible keys, times their latents; splits are left to be merged where
// projection_merges() says so
Status launch_attend_latent(const AttendLatentParams& params, const Stream& stream);
// The same for a single row, all of whose keys are on their way at once (attend_few.cu).
Result<bool> suits_attend_few(const AttendLatentParams& params);
Status launch_attend_few(const AttendLatentParams& params, const Stream& stream);
// out = queries . Wv
Status launch_project_values(const AttendLatentParams& params, const Stream& stream);

}  // namespace stoker::gpu
