// Backend: one device that computes. The forward pass in core is written against this seam alone.
//
// A backend *enqueues and never returns values*: operations take effect in the order of their
// calls, some time between the call and a later event. Tensors carry the backend's DeviceId and are
// never dereferenced by core; what core must see (chosen experts, logits) travels through host
// mailboxes and is valid once an event recorded after the operation is done. A backend that
// computes at once (CPU) is the special case in which every event is done.
//
// Arithmetic is chosen by the model, the shape, the instruction set and a row's *purpose*, never by
// timing, residency or how many rows there are: within a purpose a row's bits do not depend on the
// other rows of the step.
//
// Parameters and the spans in them are read during the call, except what is said to be a mailbox,
// forced experts, host memory of a copy, or the StepView: those stay valid, and what is read of
// them as it is, until an event after the operation. Any operand may be a column slice.
//
// Errors of enqueued work are kept by the backend and come out of status() and finish(). Not
// thread-safe: the driver thread owns it. Formulas: spec/deepseek-v3.2.md section 3; shapes are
// [rows, cols], T = rows of the step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/ids.h"
#include "core/interface/expert_provider.h"
#include "core/model/kv_format.h"
#include "core/model/layer_spec.h"
#include "core/tensor/quant_view.h"
#include "core/tensor/tensor.h"

namespace stoker {

// What a row is computed for; it selects the arithmetic.
enum class Purpose : std::uint8_t { kDecode, kPrefill };  // kDecode: decode and verify

inline constexpr int kPageTokens = 64;  // tokens per KV page
// Steps of at most this many rows, all for decode, may be enqueued in parts: Backend::begin_part().
inline constexpr int kMostPartRows = 16;

// Consecutive rows of a step that belong to one sequence and purpose.
struct RowRange {
  int row_begin = 0;
  int num_rows = 0;
  int sequence = 0;  // index into StepView::sequences
  Purpose purpose = Purpose::kDecode;
};

// Where a sequence's cached rows lie: position p is row page[p / 64] * 64 + p % 64 of the stream's
// tensors.
struct SequencePages {
  std::span<const std::int32_t> latent;
  std::span<const std::int32_t> index;
};

// What is particular to one step. Lives at fixed addresses from begin_step() to the end of the
// step.
struct StepView {
  std::span<const TokenId> tokens;          // [T]
  std::span<const std::int32_t> positions;  // [T] position of each row in its sequence
  std::span<const RowRange> ranges;         // cover [0, T) in order
  std::span<const SequencePages> sequences;
  std::span<const std::int32_t> logit_rows;  // rows whose logits are wanted, ascending

  int num_rows() const { return static_cast<int>(tokens.size()); }
  bool may_have_parts() const;
};

// A weight in the form its backend computes with. Created by Backend::adopt*, used with that
// backend only.
class BackendWeight {
 public:
  virtual ~BackendWeight() = default;
  virtual std::int64_t rows() const = 0;   // outputs
  virtual std::int64_t cols() const = 0;   // inputs
  virtual std::int64_t bytes() const = 0;  // of its device's memory
};
using WeightPtr = std::unique_ptr<const BackendWeight>;

// One of several linears of the same inputs.
struct LinearOutput {
  const BackendWeight* weight = nullptr;
  TensorView y;  // [T, weight->rows()]
};

// A point in a backend's order of operations.
struct Event {
  std::uint64_t ticket = 0;
};

enum class RopeStyle : std::uint8_t { kInterleaved, kHalfSplit };  // spec 3.4: MLA, indexer

// The cached rows of one layer in one stream, in the backend's kv_format().
struct KvLayer {
  TensorView rows;  // [num_pages * 64, ...] as kv_matrix() says
  KvRow row;        // what each holds: latent and rope part, or an indexer key

  bool is_fp8() const { return rows.dtype == DType::kU8; }
};

// Positions each row attends to. counts[t] = -1: all visible ones (dense).
struct Selection {
  TensorView positions;  // I32 [T, top_k], ascending
  TensorView counts;     // I32 [T, 1]
};

// What the layer's own indexer has after its linears. See AttentionInputParams.
struct IndexInputParams {
  IndexerDims dims;
  TensorView key;                     // [T, head_dim], normed and rotated, then kept in `keys`
  TensorView norm_weight, norm_bias;  // F32 [1, head_dim]
  float norm_eps;
  TensorView queries;   // [T, num_heads * head_dim], rotated in place
  TensorView weights;   // F32 [T, num_heads], multiplied in place
  float weight_factor;  // by this
  KvLayer keys;
};

// What attention has after its linears, on its way to what select() and attend() take.
struct AttentionInputParams {
  AttentionDims dims;
  TensorView queries;      // [T, num_heads * (nope + rope)], rotated in place
  TensorView kv_a;         // [T, latent + rope]: latents are normed, rope keys rotated, both kept
  TensorView norm_weight;  // F32 [1, latent]
  float norm_eps;
  KvLayer latents;
  const IndexInputParams* indexer;  // null: the layer has none of its own
};

struct SelectParams {
  IndexerDims dims;
  TensorView queries;  // [T, num_heads * head_dim], rope applied
  TensorView weights;  // F32 [T, num_heads], all factors applied
  KvLayer keys;
  Selection out;
};

struct AttendParams {
  AttentionDims dims;
  TensorView queries;         // [T, num_heads * (nope + rope)], rope applied
  const BackendWeight* kv_b;  // from adopt_kv_b()
  KvLayer latents;
  const Selection* selection;  // null: dense causal
  TensorView out;              // [T, num_heads * value_dim]
};

// The router's choice, in memory from allocate_host(): [T, top_k] each, in order of choice score,
// best first.
struct RouteMailbox {
  std::span<std::int32_t> experts;
  std::span<float> weights;
};

struct RouteParams {
  RouterSpec spec;
  TensorView logits;                       // F32 [T, num_experts], before the sigmoid
  TensorView bias;                         // F32 [1, num_experts]
  std::span<const std::int32_t> forced{};  // [T, top_k], from allocate_host(): take these experts
                                           // instead, weights computed; empty: choose
  RouteMailbox mailbox;
};

// Parts of routed experts to compute; see expert_provider.h. A down part is enqueued after all
// gate/up parts of its expert. Rows of one expert are computed together, each in the arithmetic of
// its purpose.
struct ExpertParams {
  TensorView x;                       // [T, hidden_size]
  TensorView hidden;                  // [slots, moe_intermediate_size], scratch
  TensorView out;                     // [slots, hidden_size]
  std::span<const ExpertUse> uses;    // all uses of the layer, ascending expert id
  std::span<const ExpertPart> parts;  // those to run now
};

struct CombineParams {
  TensorView expert_out;                // [slots, hidden_size]
  std::span<const std::int32_t> slots;  // [T, top_k] ascending expert id per row
  std::span<const float> weights;       // [T, top_k] in the same order
  TensorView shared;                    // [T, hidden_size] or empty
  TensorView out;                       // [T, hidden_size]
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  virtual DeviceId device() const = 0;
  // Type of activations between modules: kBf16 or kF32.
  virtual DType activation_dtype() const = 0;
  // Form of the cached rows of both KV streams.
  virtual KvFormat kv_format() const = 0;
  // Operations are complete when their calls return, and every event is done. Who calls such a
  // backend gives other devices and drives their work first.
  virtual bool computes_at_once() const { return false; }

  // ---- Memory. These may block; none is called on the token path. ----

  // Zeroed device memory.
  virtual Result<Tensor> allocate(DType dtype, std::int64_t rows, std::int64_t cols) = 0;
  // Zeroed host memory for mailboxes and copies; a backend that moves data to a device may pin it.
  virtual Result<Tensor> allocate_host(DType dtype, std::int64_t rows, std::int64_t cols);
  // Makes a row-major host weight resident in this backend's form. `host` may be freed afterwards.
  virtual Result<WeightPtr> adopt(const QuantView& host) = 0;
  // The embedding table, of which rows are looked up.
  virtual Result<WeightPtr> adopt_embedding(const QuantView& host) = 0;
  // kv_b_proj, split per head for absorbed attention.
  virtual Result<WeightPtr> adopt_kv_b(const QuantView& host, const AttentionDims& dims) = 0;
  // A vector (norm weight, bias) as F32 [1, n].
  virtual Result<Tensor> adopt_vector(const TensorView& host) = 0;
  // Frequencies of the rotary embedding, F32 [rope_dim / 2] on the host; kept by the backend.
  virtual Status set_rope(std::span<const float> inv_freq) = 0;

  // ---- Order. ----

  virtual Status begin_step(const StepView& step) = 0;
  virtual Event record() = 0;
  virtual bool done(Event event) = 0;
  // Later operations of this backend wait for `event` of `other`.
  virtual void wait_for(Backend& other, Event event) = 0;
  // Begins a part of `step` that comes again and again. From here to end_part() the caller enqueues
  // operations and records events, and nothing else; it asks for those afterwards. For the same
  // address of the step, number of rows and `part` they are always the same calls with the same
  // operands: what differs is in the step's description and in host memory of operands. A backend
  // may keep them and run them all at the end. Requires: step.may_have_parts(), and no part is
  // open. See PartScope.
  virtual void begin_part(const StepView& /*step*/, int /*part*/) {}
  virtual void end_part() {}
  // No step at this address has operands of those before: what was kept of its parts is dropped.
  virtual void forget_parts(const StepView& /*step*/) {}
  // First error of enqueued work since the last begin_step(), as far as it is known.
  virtual Status status() = 0;
  // What experts took, if that was measured since the last call: one call of experts() in many, so
  // that it costs next to nothing. A backend may measure nothing.
  virtual std::optional<ExpertTiming> take_expert_timing() { return std::nullopt; }
  // How long it has worked on what it was given since it was made. 0: not measured.
  virtual std::int64_t busy_us() const { return 0; }
  // Waits for everything enqueued. The only blocking call.
  virtual Status finish() = 0;

  // ---- Copies between host memory (valid until the event after them) and the device. ----

  virtual void copy_in(const TensorView& dst, const void* src) = 0;
  virtual void copy_out(void* dst, const TensorView& src) = 0;
  virtual void copy(const TensorView& dst, const TensorView& src) = 0;

  // ---- Operations. All rows of the step unless said otherwise. ----

  // out[t] = table[tokens[t]]                                           out [T, hidden_size]
  virtual void embed(const StepView& step, const BackendWeight& table, TensorView out) = 0;
  // y = x . W^T, rounded to y's type (activation type or F32)            x [T, cols], y [T, rows]
  virtual void linear(const StepView& step, const BackendWeight& weight, TensorView x,
                      TensorView y) = 0;
  // linear() of each, to the same bits; no y overlaps x or another y. A backend may compute them
  // side by side.
  virtual void linears(const StepView& step, std::span<const LinearOutput> outputs, TensorView x) {
    for (const LinearOutput& output : outputs) linear(step, *output.weight, x, output.y);
  }
  // The linear of the step's logit rows only, always F32, by decode arithmetic: x
  // [num_logit_rows, cols].
  virtual void logits(const StepView& step, const BackendWeight& head, TensorView x,
                      TensorView y) = 0;
  // out[i] = x[logit_rows[i]]
  virtual void gather_logit_rows(const StepView& step, TensorView x, TensorView out) = 0;
  // RMSNorm in F32, one rounding. `x` and `out` may be column slices and may be the same.
  virtual void rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                        TensorView out) = 0;
  // s = h + residual in F32; out = rms_norm(s); residual = round(s). `first`: s = h, residual = h.
  virtual void add_rms_norm(const StepView& step, TensorView h, TensorView residual, bool first,
                            TensorView weight, float eps, TensorView out) = 0;
  // LayerNorm with weight and bias, in place.
  virtual void layer_norm(const StepView& step, TensorView x, TensorView weight, TensorView bias,
                          float eps) = 0;
  // Rotates columns [h * head_stride + offset, + rope_dim) of every head h in place.
  virtual void rope(const StepView& step, TensorView x, int num_heads, int head_stride, int offset,
                    int rope_dim, RopeStyle style) = 0;
  // x *= factor, F32.
  virtual void scale(const StepView& step, TensorView x, float factor) = 0;
  // Writes each row to its position in the layer's stream. An FP8 cache quantises here; an indexer
  // key it also rotates (Hadamard), and select() does to queries what was done to keys: spec 3.6.
  virtual void append_latent(const StepView& step, TensorView x, KvLayer dst) = 0;
  virtual void append_index_key(const StepView& step, TensorView x, KvLayer dst) = 0;
  // All that stands between attention's linears and select(), or attend(). `kv_a` and the indexer's
  // key are scratch from then on: what they hold depends on the backend. A backend may fuse it, to
  // the bits that its single operations give.
  virtual void prepare_attention(const StepView& step, const AttentionInputParams& params);
  // Lightning indexer: the top_k visible positions by score, ties to the lower position; dense for
  // rows with at most top_k visible ones, whose scores are not computed.
  virtual void select(const StepView& step, const SelectParams& params) = 0;
  // MLA over the selected (or all visible) positions.
  virtual void attend(const StepView& step, const AttendParams& params) = 0;
  // silu(gate) * up, rounded                                            all [T, n]
  virtual void silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) = 0;
  // Gated feed-forward; `gate_out`, `up_out` [T, n] are scratch. A backend may fuse it.
  virtual void gated_ffn(const StepView& step, const BackendWeight& gate, const BackendWeight& up,
                         const BackendWeight& down, TensorView x, TensorView gate_out,
                         TensorView up_out, TensorView out) {
    const LinearOutput gate_and_up[] = {{&gate, gate_out}, {&up, up_out}};
    linears(step, gate_and_up, x);
    silu_mul(step, gate_out, up_out, gate_out);
    linear(step, down, gate_out, out);
  }
  virtual void route(const StepView& step, const RouteParams& params) = 0;
  virtual void experts(const StepView& step, const ExpertParams& params) = 0;
  virtual void combine(const StepView& step, const CombineParams& params) = 0;
};

// A part, for as long as it lives: it also ends where an error leaves it.
class PartScope {
 public:
  // Null: no part.
  PartScope(Backend* backend, const StepView& step, int part) : backend_(backend) {
    if (backend_ != nullptr) backend_->begin_part(step, part);
  }
  ~PartScope() {
    if (backend_ != nullptr) backend_->end_part();
  }
  PartScope(const PartScope&) = delete;
  PartScope& operator=(const PartScope&) = delete;

 private:
  Backend* backend_;
};

}  // namespace stoker
