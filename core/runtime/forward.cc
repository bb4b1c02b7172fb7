#include "core/runtime/forward.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/runtime/runner.h"
#include "core/runtime/transfer.h"

namespace stoker {
namespace {

constexpr float kIndexerNormEps = 1e-6f;  // spec 3.1: not the library default of 1e-5

// Whether the layer has an indexer of its own.
bool selects_itself(const LayerSpec& spec) {
  return spec.attention == AttentionKind::kMlaSparse && spec.selection_from == spec.index;
}

}  // namespace

WorkspaceBytes Forward::bytes_needed(const ModelConfig& config, DType activations,
                                     WorkspaceLimits limits) {
  return {Workspace::bytes_needed(config, activations, limits),
          ExpertSites::bytes_needed(config, activations, limits),
          HostWorkspace::bytes_needed(config, limits)};
}

Forward::Forward(Runner& runner, WorkspaceLimits limits)
    : engine_(runner.engine()), clock_(runner.clock()), limits_(limits) {
  const auto rows = static_cast<std::size_t>(limits.max_rows);
  segments_.reserve(rows);
  ranges_.reserve(rows);
  sequences_.reserve(rows);
  positions_.reserve(rows);
  logit_rows_.reserve(rows);
  guesses_.reserve(kMaxLead);
}

Result<std::unique_ptr<Forward>> Forward::create(Runner& runner, WorkspaceLimits limits) {
  auto forward = std::unique_ptr<Forward>(new Forward(runner, limits));
  const ModelConfig& config = runner.engine().config();
  const Placement& placement = runner.engine().placement();
  for (int i = 0; i < static_cast<int>(placement.backends().size()); ++i) {
    std::unique_ptr<Workspace> workspace;
    if (placement.is_dense(i)) {
      ASSIGN_OR_RETURN(workspace, Workspace::create(config, *placement.backends()[i], limits));
    }
    forward->workspaces_.push_back(std::move(workspace));
  }
  ASSIGN_OR_RETURN(forward->host_, HostWorkspace::create(config, placement.dense(0), limits));
  ASSIGN_OR_RETURN(forward->sites_, ExpertSites::create(config, placement, limits,
                                                        forward->workspaces_, runner.clock()));
  return forward;
}

Forward::~Forward() {
  release();
  for (Backend* backend : engine_.placement().backends()) backend->forget_parts(step_);
}

void Forward::release() {
  for (std::size_t i = 0; i < num_reserved_; ++i)
    segments_[i].kv->rewind(segments_[i].kv->length());
  num_reserved_ = 0;
  next_layer_ = kFinished;
  segments_.clear();
}

Status Forward::start(Runner& runner, const StepBatch& batch) {
  CHECK(done(), "the pass is running");
  started_us_ = clock_.now_us();
  const auto begin = [&]() -> Status {
    RETURN_IF_ERROR(describe(batch));
    RETURN_IF_ERROR(reserve());
    next_layer_ = 0;
    step_ = {batch.tokens, positions_, ranges_, sequences_, logit_rows_};
    has_parts_ = step_.may_have_parts();
    for (Backend* backend : engine_.placement().backends()) {
      RETURN_IF_ERROR(backend->begin_step(step_));
    }
    if (hooks_ != nullptr) hooks_->on_begin(batch);
    runner.experts().begin_step(batch.tokens);
    backend().embed(step_, *engine_.weights().embedding, rows(workspace().h));
    return backend().status();
  };
  Status status = begin();
  if (!status.ok()) release();
  return status;
}

Status Forward::describe(const StepBatch& batch) {
  segments_.clear();
  ranges_.clear();
  sequences_.clear();
  positions_.clear();
  logit_rows_.clear();
  guesses_.clear();
  hooks_ = batch.hooks;
  cancel_ = batch.cancel;
  const int num_rows = static_cast<int>(batch.tokens.size());
  CHECK(num_rows <= max_rows(), "{} rows, workspace holds {}", num_rows, max_rows());
  int covered = 0;
  for (const Segment& segment : batch.segments) {
    CHECK(segment.kv != nullptr && segment.num_rows > 0 && segment.row_begin == covered,
          "segment of {} rows at row {} after {}", segment.num_rows, segment.row_begin, covered);
    ranges_.push_back(
        {segment.row_begin, segment.num_rows, static_cast<int>(segments_.size()), segment.purpose});
    segments_.push_back(segment);
    for (int i = 0; i < segment.num_rows; ++i) positions_.push_back(segment.kv->length() + i);
    covered += segment.num_rows;
    const int first_wanted = segment.want == Logits::kAll    ? segment.row_begin
                             : segment.want == Logits::kLast ? covered - 1
                                                             : covered;
    for (int row = first_wanted; row < covered; ++row) logit_rows_.push_back(row);
  }
  CHECK(covered == num_rows && num_rows > 0, "segments cover {} of {} rows", covered, num_rows);
  CHECK(static_cast<int>(logit_rows_.size()) <= limits_.max_logit_rows,
        "logits of {} rows wanted, workspace holds {}", logit_rows_.size(), limits_.max_logit_rows);
  for (const TokenId token : batch.tokens) {
    if (token < 0 || token >= engine_.config().vocab_size) {
      return make_error(ErrorCode::kInvalidArgument, "token id {} is outside the vocabulary of {}",
                        token, engine_.config().vocab_size);
    }
  }
  return {};
}

Status Forward::reserve() {
  for (const Segment& segment : segments_) {
    const int needed = segment.kv->length() + segment.num_rows;
    if (needed > engine_.config().max_position_embeddings) {
      return make_error(ErrorCode::kResource,
                        "{} tokens are more than the {} positions this model was made for", needed,
                        engine_.config().max_position_embeddings);
    }
    RETURN_IF_ERROR(segment.kv->reserve(segment.num_rows));
    ++num_reserved_;
  }
  for (const Segment& segment : segments_) sequences_.push_back(segment.kv->pages());
  return {};
}

Status Forward::run_layer(Runner& runner) {
  CHECK(!done(), "the pass is done");
  const auto run = [&]() -> Status {
    const LayerSpec& spec = engine_.config().layers()[next_layer_];
    RETURN_IF_ERROR(run_one_layer(runner, spec, engine_.weights().layers[next_layer_]), "layer {}",
                    spec.index);
    if (next_layer_ + 1 == engine_.num_layers()) return finish(runner);
    move_on();
    return {};
  };
  Status status = run();
  if (!status.ok()) {
    finish_backends();  // nothing may still write into pages, or read experts, that are given back
    runner.drop_kept();
    release();
    logit_rows_.clear();
  }
  return status;
}

// To the next layer, and to the backend that runs it.
void Forward::move_on() {
  Backend& before = backend();
  const Workspace& from = workspace();
  ++next_layer_;
  if (&backend() == &before) return;
  const Workspace& to = workspace();
  transfer(before, rows(from.h), backend(), rows(to.h));
  transfer(before, rows(from.residual), backend(), rows(to.residual));
  const LayerSpec& spec = engine_.config().layers()[next_layer_];
  if (spec.attention == AttentionKind::kMlaSparse && spec.selection_from != spec.index) {
    transfer(before, rows(from.selected), backend(), rows(to.selected));
    transfer(before, rows(from.selected_counts), backend(), rows(to.selected_counts));
  }
}

void Forward::finish_backends() {
  for (Backend* backend : engine_.placement().backends()) (void)backend->finish();
}

Status Forward::run_one_layer(Runner& runner, const LayerSpec& spec, const LayerWeights& weights) {
  RETURN_IF_ERROR(tell_all_guesses(runner));  // their mailbox is used again
  RETURN_IF_ERROR(dense_part(runner, spec, weights));
  if (spec.ffn == FfnKind::kMoe) {
    RETURN_IF_ERROR(mixture_of_experts(runner, spec, weights));
  } else {
    tell_guesses(runner);
  }
  return backend().status();
}

// Attention, and the dense feed-forward or the router; where the backend goes on by itself, the
// shared expert too, which needs no routes.
Status Forward::dense_part(Runner& runner, const LayerSpec& spec, const LayerWeights& weights) {
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  const float eps = engine_.config().rms_norm_eps;
  const TensorView h = rows(w.h), residual = rows(w.residual), normed = rows(w.normed);
  const bool is_moe = spec.ffn == FfnKind::kMoe;
  const std::span<const std::int32_t> forced = forced_experts(spec);
  // The last dense layer looks ahead, too: from then on the drive has something to do.
  const int next = next_layer_ + 1;
  const bool looks_ahead =
      is_moe ? !backend.computes_at_once()
             : next < engine_.num_layers() && engine_.config().layers()[next].ffn == FfnKind::kMoe;
  const int num_ranked = looks_ahead ? num_ranked_wanted(runner) : 0;
  const PartScope part = this->part(num_ranked, !forced.empty(), !hooks_select(spec));
  backend.add_rms_norm(step_, h, residual, /*first=*/next_layer_ == 0, weights.input_norm.view(),
                       eps, normed);
  RETURN_IF_ERROR(attention(runner, spec, weights));
  backend.add_rms_norm(step_, h, residual, /*first=*/false, weights.post_attention_norm.view(), eps,
                       normed);
  if (is_moe) {
    route(spec, weights, forced);
    routed_ = backend.record();
    if (!backend.computes_at_once()) shared_expert(spec, weights, num_ranked);
    return {};
  }
  backend.gated_ffn(step_, *weights.gate, *weights.up, *weights.down, normed,
                    rows(w.ffn_gate).col_slice(0, spec.ffn_width),
                    rows(w.ffn_up).col_slice(0, spec.ffn_width), h);
  if (looks_ahead) look_ahead(num_ranked, rows(w.h), rows(w.shared_out));
  return {};
}

// Experts that the hooks want in this layer, where operations may read them: what the layer before
// wanted has been read.
std::span<const std::int32_t> Forward::forced_experts(const LayerSpec& spec) {
  if (hooks_ == nullptr || spec.ffn != FfnKind::kMoe) return {};
  const std::span<const std::int32_t> forced = hooks_->forced_experts(spec.index);
  if (forced.empty()) return {};
  CHECK(forced.size() == static_cast<std::size_t>(step_.num_rows()) *
                             static_cast<std::size_t>(spec.router.top_k),
        "{} forced experts for {} rows", forced.size(), step_.num_rows());
  auto* const held = host_->forced_experts.view().row<std::int32_t>(0);
  std::copy(forced.begin(), forced.end(), held);
  return {held, forced.size()};
}

// A part of the layer, if it is possible there; its calls depend on what else is given.
PartScope Forward::part(int num_ranked, bool is_forced, bool possible) {
  CHECK(num_ranked >= 0 && num_ranked <= kMaxRankedGuesses, "{} ranked guesses", num_ranked);
  const int number = (2 * next_layer_ + int{is_forced}) * (kMaxRankedGuesses + 1) + num_ranked;
  return PartScope(has_parts_ && possible ? &backend() : nullptr, step_, number);
}

// Whether hooks force or see what the layer selects: then it waits on the way.
bool Forward::hooks_select(const LayerSpec& spec) const {
  if (hooks_ == nullptr || !selects_itself(spec)) return false;
  bool select = hooks_->wants_selection(spec.index);
  for (int row = 0; row < step_.num_rows() && !select; ++row) {
    select = !hooks_->forced_selection(spec.index, row).empty();
  }
  return select;
}

// Multi-head latent attention, spec 3.5: normed -> h.
Status Forward::attention(Runner& runner, const LayerSpec& spec, const LayerWeights& weights) {
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  const AttentionDims dims = engine_.config().attention_dims();
  const float eps = engine_.config().rms_norm_eps;
  const TensorView normed = rows(w.normed), q_latent = rows(w.q_latent), q = rows(w.q),
                   kv_a = rows(w.kv_a);
  // 1. Linears of the layer's input, and of the query latent: those of the indexer are among them.
  std::array<LinearOutput, 4> of_input = {
      {{weights.q_a.get(), q_latent}, {weights.kv_a.get(), kv_a}}};
  std::array<LinearOutput, 2> of_latent = {{{weights.q_b.get(), q}}};
  std::size_t num_of_input = 2, num_of_latent = 1;
  if (selects_itself(spec)) {
    of_input[num_of_input++] = {weights.indexer.key.get(), rows(w.index_k)};
    of_input[num_of_input++] = {weights.indexer.head_weights.get(), rows(w.index_weights)};
    of_latent[num_of_latent++] = {weights.indexer.queries.get(), rows(w.index_q)};
  }
  backend.linears(step_, std::span(of_input).first(num_of_input), normed);
  backend.rms_norm(step_, q_latent, weights.q_a_norm.view(), eps, q_latent);
  backend.linears(step_, std::span(of_latent).first(num_of_latent), q_latent);
  // 2. Queries, and what is cached: the latent with the shared rope key, and the indexer's key.
  const KvLayer latents = runner.kv_pool().layer(KvStream::kLatent, next_layer_);
  AttentionInputParams inputs{dims, q, kv_a, weights.kv_a_norm.view(), eps, latents, nullptr};
  IndexInputParams index_inputs;
  if (selects_itself(spec)) {
    index_inputs = this->index_inputs(runner, weights.indexer);
    inputs.indexer = &index_inputs;
  }
  backend.prepare_attention(step_, inputs);
  // 3. Which positions, and attention over them.
  const bool sparse = spec.attention == AttentionKind::kMlaSparse;
  if (sparse) RETURN_IF_ERROR(select(runner, spec));
  Selection selection;
  if (sparse) selection = {rows(w.selected), rows(w.selected_counts)};
  backend.attend(step_, {dims, q, weights.kv_b.get(), latents, sparse ? &selection : nullptr,
                         rows(w.attention)});
  backend.linear(step_, *weights.o, rows(w.attention), rows(w.h));
  return {};
}

// Of the lightning indexer, spec 3.6, after its linears. Keys are cached for every position, also
// while every visible one is selected.
IndexInputParams Forward::index_inputs(Runner& runner, const IndexerWeights& indexer) const {
  const Workspace& w = workspace();
  const IndexerDims dims = *engine_.config().indexer_dims();
  return {.dims = dims,
          .key = rows(w.index_k),
          .norm_weight = indexer.key_norm_weight.view(),
          .norm_bias = indexer.key_norm_bias.view(),
          .norm_eps = kIndexerNormEps,
          .queries = rows(w.index_q),
          .weights = rows(w.index_weights),
          .weight_factor = 1.0f / std::sqrt(static_cast<float>(dims.num_heads)) /
                           std::sqrt(static_cast<float>(dims.head_dim)),
          .keys = runner.kv_pool().layer(KvStream::kIndex, next_layer_)};
}

// The layer's selection, by its own indexer or by one before.
Status Forward::select(Runner& runner, const LayerSpec& spec) {
  if (!selects_itself(spec)) {
    CHECK(selecting_layer_ == spec.selection_from,
          "layer {} uses the selection of layer {}, the last is of {}", spec.index,
          spec.selection_from, selecting_layer_);
    return {};
  }
  const Workspace& w = workspace();
  backend().select(step_, {*engine_.config().indexer_dims(),
                           rows(w.index_q),
                           rows(w.index_weights),
                           runner.kv_pool().layer(KvStream::kIndex, next_layer_),
                           {rows(w.selected), rows(w.selected_counts)}});
  selecting_layer_ = spec.index;
  return hooks_select(spec) ? apply_selection_hooks(runner, spec) : Status();
}

Status Forward::apply_selection_hooks(Runner& runner, const LayerSpec& spec) {
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  auto* counts = static_cast<std::int32_t*>(host_->selected_counts.view().data);
  const int top_k = engine_.config().indexer_dims()->top_k;
  bool any_forced = false;
  for (int row = 0; row < step_.num_rows(); ++row) {
    const std::span<const std::int32_t> forced = hooks_->forced_selection(spec.index, row);
    if (forced.empty()) continue;
    any_forced = true;
    CHECK(static_cast<int>(forced.size()) <= top_k, "{} forced positions", forced.size());
    counts[row] = static_cast<std::int32_t>(forced.size());
    backend.copy_in(w.selected.view().row_slice(row, 1).col_slice(0, counts[row]), forced.data());
    backend.copy_in(w.selected_counts.view().row_slice(row, 1), &counts[row]);
  }
  // What is forced has been read: positions are the hooks', and the buffer of counts is used again.
  if (any_forced) RETURN_IF_ERROR(runner.wait(backend, backend.record(), cancel_));
  if (!hooks_->wants_selection(spec.index)) return {};
  auto* positions = static_cast<std::int32_t*>(host_->selected.view().data);
  backend.copy_out(counts, rows(w.selected_counts));
  backend.copy_out(positions, rows(w.selected));
  RETURN_IF_ERROR(runner.wait(backend, backend.record(), cancel_));
  const auto num_rows = static_cast<std::size_t>(step_.num_rows());
  hooks_->on_selection(spec.index, {counts, num_rows}, {positions, num_rows * top_k});
  return {};
}

Status Forward::finish(Runner& runner) {
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  backend.add_rms_norm(step_, rows(w.h), rows(w.residual), /*first=*/false,
                       engine_.weights().final_norm.view(), engine_.config().rms_norm_eps,
                       rows(w.normed));
  const auto wanted = static_cast<std::int64_t>(logit_rows_.size());
  if (wanted > 0) {
    const TensorView hidden = w.logit_hidden.view().row_slice(0, wanted);
    const TensorView logits = w.logits.view().row_slice(0, wanted);
    backend.gather_logit_rows(step_, rows(w.normed), hidden);
    backend.logits(step_, *engine_.weights().head, hidden, logits);
    backend.copy_out(host_->logits.view().data, logits);
  }
  RETURN_IF_ERROR(runner.wait(backend, backend.record(), cancel_));
  RETURN_IF_ERROR(runner.release_kept(cancel_));
  for (Backend* each : engine_.placement().backends()) RETURN_IF_ERROR(each->status());
  for (const Segment& segment : segments_) segment.kv->commit(segment.num_rows);
  num_reserved_ = 0;
  next_layer_ = kFinished;
  if (hooks_ != nullptr) hooks_->on_end();
  runner.on_finished(*this);
  return {};
}

int Forward::num_decode_rows() const {
  int count = 0;
  for (const RowRange& range : ranges_) {
    if (range.purpose == Purpose::kDecode) count += range.num_rows;
  }
  return count;
}

RowsView Forward::logits() const {
  CHECK(done(), "logits() of an unfinished pass");
  return {host_->logits.view().row<const float>(0), static_cast<int>(logit_rows_.size()),
          engine_.config().vocab_size};
}

TensorView Forward::hidden() const {
  CHECK(done(), "hidden() of an unfinished pass");
  const Placement& placement = engine_.placement();
  return workspaces_[static_cast<std::size_t>(placement.dense_index(engine_.num_layers() - 1))]
      ->normed.view()
      .row_slice(0, step_.num_rows());
}

}  // namespace stoker
