// Every kernel's parameters and launcher. A launcher checks at the door, enqueues on `stream`, and
// returns what the launch itself can say; errors of the running kernel come out of a later wait.
// All addresses are device memory; T = rows of the step. Activations are BF16 or F32 by their
// view's dtype; sums are F32 and are rounded once, when stored.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/error.h"
#include "core/interface/backend.h"
#include "gpu/device.h"

namespace stoker::gpu {

// Whether this build holds kernels for the current device.
Status kernels_available();
// Whether they may start before the kernel before them is complete: the device can do that, the
// driver can capture it, and they have been compiled to wait (kernels/common/overlap.cuh).
bool kernels_may_overlap();

// The tables of a step in device memory (gpu/step_cache.h fills them).
struct StepTables {
  int num_rows = 0;
  int num_logit_rows = 0;
  const std::int32_t* tokens = nullptr;        // [T]
  const std::int32_t* positions = nullptr;     // [T]
  const std::int32_t* logit_rows = nullptr;    // [num_logit_rows]
  const std::int32_t* latent_first = nullptr;  // [T] index of the row's sequence in latent_pages
  const std::int32_t* index_first = nullptr;   // [T] the same for index_pages
  const std::int32_t* latent_pages = nullptr;  // page tables, one sequence after another
  const std::int32_t* index_pages = nullptr;   // may be the same, with other sequences in it
};

// Adds one to a count in device memory and posts it in pinned host memory.
struct CountUpParams {
  std::uint64_t* count;
  std::uint64_t* word;
};
Status launch_count_up(const CountUpParams& params, const Stream& stream);

// y[t] = W . x[t] in the defined arithmetic (quant/defined_arithmetic.h), bit for bit, whatever T.
struct GemvParams {
  QuantView weight;  // tile16
  TensorView x;      // [T, cols]
  TensorView y;      // [T, rows]
};
Status launch_gemv(const GemvParams& params, const Stream& stream);

// y[t] = W . x[t] for the rows of decode and verify, BF16 inputs and FP8 or BF16 weights, on tensor
// cores: of one matrix, or of several at once. A row's bits depend on the row and the weight alone.
// For FP8 weights inputs and scales are below 2^68.
struct LinearScratch {
  float* partials;     // as large as linear_few_scratch() says, for all matrices together
  unsigned* counters;  // the same; zeros before and after
};
struct LinearScratchSize {
  std::int64_t partial_bytes = 0, counter_bytes = 0;

  LinearScratchSize& operator+=(const LinearScratchSize& other) {
    partial_bytes += other.partial_bytes;
    counter_bytes += other.counter_bytes;
    return *this;
  }
};
struct LinearFewOutput {
  QuantView weight;  // tile16
  TensorView y;      // [T, rows]
};
struct LinearFewParams {
  std::span<const LinearFewOutput> outputs;  // of one format; 1 to kMostLinearsJoined
  TensorView x;                              // [T, cols]
  LinearScratch scratch;
  // kernels/common/overlap.cuh; of at most kLinearFewRows rows:
  bool is_sibling = false;   // x, outputs and scratch have nothing to do with the kernel before
  bool has_sibling = false;  // the next launch is one; some matrix here is not streamed
};
inline constexpr int kLinearFewRows = 16;  // that share a reading of the weight, at most
inline constexpr int kMostLinearsJoined = 4;
bool suits_linear_few(const QuantView& weight, DType x);
LinearScratchSize linear_few_scratch(const QuantView& weight, std::int64_t rows);
Status launch_linear_few(const LinearFewParams& params, const Stream& stream);

// out = rows [row_begin, row_begin + num_rows) of an FP8 or BF16 weight times their scales, as
// BF16, row-major: what a library's product takes. Requires: cols is a multiple of 8.
struct WidenParams {
  QuantView weight;  // tile16
  std::int64_t row_begin, num_rows;
  bf16* out;  // [num_rows, cols]
};
Status launch_widen(const WidenParams& params, const Stream& stream);

// A block of output rows of one expert, or a run of such blocks (ExpertPart), for a few of the rows
// that chose it.
inline constexpr int kExpertTaskRows = 4;
struct ExpertTask {
  QuantView weight;                            // tile16: gate, or down; of the first block
  QuantView up;                                // tile16; empty for a down task
  int row_begin = 0;                           // first output column
  int num_blocks = 1;                          // of the run
  std::int64_t stride = 0;                     // bytes from one to the next
  int num_inputs = 0;                          // at most kExpertTaskRows
  std::int32_t in_rows[kExpertTaskRows] = {};  // rows of x
  std::int32_t out_row = 0;                    // input i goes to row out_row + i of out
};
// Gate/up: out = round(silu(round(gate . x)) * round(up . x)). Down: out = round(down . x). In the
// defined arithmetic, bit for bit. All tasks of a call have the same spec and number of inputs.
struct ExpertBatchParams {
  std::span<const ExpertTask> tasks;
  TensorView x;
  TensorView out;
  bool in_order = false;  // weights come from another stream: none before this one's turn
};
Status launch_expert_gate_up(const ExpertBatchParams& params, const Stream& stream);
Status launch_expert_down(const ExpertBatchParams& params, const Stream& stream);

// The same on tensor cores, for BF16 inputs and 8 or 4 bit or BF16 weights: sums of F32, not the
// defined arithmetic. A row's bits depend on the row, the weight and which of the two kernels it
// takes.
bool suits_expert_mma(const QuantSpec& spec, const TensorView& x);
// That `weight`, and `up` if there is one, can be multiplied with `cols` inputs. Checks.
void check_expert_mma(const QuantView& weight, const QuantView& up, const QuantSpec& spec,
                      std::int64_t cols);

// Few rows: weights pass once, as codes that are exact in BF16; scales multiply sums. For FP8
// weights inputs and scales are below 2^68.
inline constexpr int kExpertFewRows = 8;
struct ExpertFewTask {
  QuantView weight;                           // as in an ExpertTask
  QuantView up;                               //
  int row_begin = 0;                          //
  int num_blocks = 1;                         //
  std::int64_t stride = 0;                    //
  int num_inputs = 0;                         // at most kExpertFewRows
  std::int32_t in_rows[kExpertFewRows] = {};  // rows of x
  std::int32_t out_row = 0;                   // input i goes to row out_row + i of out
};
struct ExpertFewParams {
  std::span<const ExpertFewTask> tasks;  // of one spec
  TensorView x;
  TensorView out;
  bool in_order = false;  // as in ExpertBatchParams
};
Status launch_expert_gate_up_few(const ExpertFewParams& params, const Stream& stream);
Status launch_expert_down_few(const ExpertFewParams& params, const Stream& stream);

// Many rows: weights are unpacked once for up to kExpertManyRows of them, times their scales,
// rounded to BF16. Tables lie in device memory (gpu/prefill_experts.h fills them).
inline constexpr int kExpertManyRows = 128;
inline constexpr int kExpertManyPairs = 4;  // of weight tiles: 64 rows of gate and up, 128 of down
struct ExpertManyTask {                     // a block of output rows of one expert
  const std::byte *payload, *scales;        // tile16: gate, or down
  const std::byte *up_payload, *up_scales;  // of a gate/up task
  std::int32_t rows, row_begin;             // of the block; first output column
};
struct ExpertManyItem {  // what one block of threads does
  std::int32_t task;
  std::int32_t first_pair;
  std::int32_t first_slot, num_rows;  // rows of out
};
struct ExpertManyParams {
  QuantSpec spec;
  const ExpertManyTask* tasks;
  const ExpertManyItem* items;
  int num_items;
  const std::int32_t* slot_rows;  // gate and up: the row of x for a slot; null: it is the slot
  TensorView x;
  TensorView out;
};
Status launch_expert_gate_up_many(const ExpertManyParams& params, const Stream& stream);
Status launch_expert_down_many(const ExpertManyParams& params, const Stream& stream);

// Those of few rows travel with the launch.
inline constexpr int kFewChoices = 128;
struct FewChoices {
  std::int32_t slots[kFewChoices];
  float weights[kFewChoices];
};
struct CombineRowsParams {
  TensorView expert_out;      // [slots, hidden_size]
  const std::int32_t* slots;  // [T, top_k]; null: they are among the few
  const float* weights;       // [T, top_k]
  FewChoices few;
  int top_k;
  TensorView shared;  // [T, hidden_size] or empty
  TensorView out;     // [T, hidden_size]
};
Status launch_combine(const CombineRowsParams& params, const Stream& stream);

// s = x, or x + residual; residual = round(s) where there is one; out = round(s * rms(s) * weight).
enum class ResidualUse : std::uint8_t { kNone, kSet, kAdd };  // kSet: s = x, and residual = s
struct RmsNormParams {
  TensorView x;         // [T, n]; may be `out`
  TensorView residual;  // [T, n] or empty
  ResidualUse residual_use;
  TensorView weight;  // F32 [1, n]
  TensorView out;     // [T, n]
  float eps;
};
Status launch_rms_norm(const RmsNormParams& params, const Stream& stream);

struct LayerNormParams {
  TensorView x;             // [T, n], in place
  TensorView weight, bias;  // F32 [1, n]
  float eps;
};
Status launch_layer_norm(const LayerNormParams& params, const Stream& stream);

struct RopeParams {
  TensorView x;  // [T, ...], in place
  const std::int32_t* positions;
  const float* inv_freq;  // [rope_dim / 2]
  int num_heads, head_stride, offset, rope_dim;
  RopeStyle style;
};
Status launch_rope(const RopeParams& params, const Stream& stream);

// x *= factor
Status launch_scale(TensorView x, float factor, const Stream& stream);
// out = round(silu(gate) * up)
Status launch_silu_mul(TensorView gate, TensorView up, TensorView out, const Stream& stream);

// out[t] = table[tokens[t]]
struct EmbedParams {
  QuantView table;  // row-major; may lie in pinned host memory
  const std::int32_t* tokens;
  TensorView out;  // [T, cols]
};
Status launch_embed(const EmbedParams& params, const Stream& stream);

// Rows without gaps to pinned host memory: of few bytes that is sooner done than a copy is begun.
inline constexpr std::int64_t kPostedBytes = std::int64_t{256} << 10;
Status launch_post(TensorView rows, void* host, const Stream& stream);

// out[i] = x[rows[i]]
Status launch_gather_rows(TensorView x, const std::int32_t* rows, TensorView out,
                          const Stream& stream);

// cache[place of position t] = x[t], in the cache's form
struct AppendParams {
  TensorView x;   // [T, n]
  KvLayer cache;  // [num_pages * 64, ...]
  bool rotated;   // first, where the cache is FP8: indexer keys
  const std::int32_t* positions;
  const std::int32_t* first;  // StepTables::latent_first or index_first
  const std::int32_t* pages;
};
Status launch_append(const AppendParams& params, const Stream& stream);

// What Backend::prepare_attention() says, in one launch, to the bits of the launchers above. kv_a
// and the indexer's key are read only: their steps stay in shared memory.
inline constexpr int kMostFusedLatent = 2048;  // longer rows are normed by more threads
struct AttentionInputRowsParams {
  AttentionInputParams inputs;
  StepTables step;
  const float* inv_freq;  // [rope_dim / 2]
};
Status launch_attention_inputs(const AttentionInputRowsParams& params, const Stream& stream);

// Queries as they are multiplied with the keys of an FP8 cache (quant::round_index_query): exact in
// BF16.
struct IndexQueryParams {
  IndexerDims dims;
  TensorView queries;  // [num_rows, num_heads * head_dim]
  TensorView out;      // BF16, the same
};
Status launch_round_index_queries(const IndexQueryParams& params, const Stream& stream);

// Scores of rows [row_begin, + num_rows) of the step for every visible position, where there are
// more than top_k.
struct IndexScoreParams {
  IndexerDims dims;
  TensorView queries;  // [num_rows, num_heads * head_dim]
  TensorView weights;  // F32 [num_rows, num_heads]
  KvLayer cache;       // index keys
  StepTables step;
  int row_begin, num_rows;
  int max_visible;  // none of those rows sees more
  float* scores;    // [num_rows, score_stride]
  std::int64_t score_stride;
};
Status launch_index_scores(const IndexScoreParams& params, const Stream& stream);

// The top_k best positions of each row, ties to the lower one, ascending; count -1 where all fit.
struct TopKParams {
  int top_k;
  const std::int32_t* positions;  // [T]
  int row_begin, num_rows;
  const float* scores;        // [num_rows, score_stride]
  std::int64_t score_stride;  // a multiple of 4
  Selection out;
};
Status launch_top_k(const TopKParams& params, const Stream& stream);

// Absorbed MLA: softmax(scale * (q_nope . Wk . c_j + q_rope . r_j)) over the chosen j, times c_j .
// Wv. A row's bits depend on nothing but the row and its purpose.
struct AttendRowsParams {
  AttentionDims dims;
  TensorView queries;  // [T, num_heads * (nope + rope)]
  QuantView kv_b;      // row-major [num_heads * (nope + value), latent]
  KvLayer cache;       // latents
  StepTables step;
  std::span<const RowRange> ranges;  // cover the rows in order
  int max_visible;                   // no row sees more
  bool sparse;
  Selection selection;  // if sparse; rows of count -1 see no more than top_k positions
  TensorView out;       // [T, num_heads * value_dim]
  std::byte* scratch;   // attend_scratch_bytes()
};
std::int64_t attend_scratch_bytes(const AttendRowsParams& params);
// The most that it says for up to `num_rows` rows, whatever they see. `queries`, `cache`: the types
// of activations and of cached latents.
std::int64_t attend_scratch_bound(const AttentionDims& dims, DType queries, DType cache,
                                  std::int64_t num_rows);
Status launch_attend(const AttendRowsParams& params, const Stream& stream);

// What is forced and what is chosen may lie in pinned host memory.
struct RouteRowsParams {
  RouterSpec spec;
  TensorView logits;           // F32 [T, num_experts]
  TensorView bias;             // F32 [1, num_experts]
  const std::int32_t* forced;  // [T, top_k] or null
  std::int32_t* experts;       // [T, top_k]
  float* weights;              // [T, top_k]
};
Status launch_route(const RouteRowsParams& params, const Stream& stream);

}  // namespace stoker::gpu
