#include "core/runtime/runner.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/runtime/session.h"

namespace stoker {
namespace {

Status check_cancelled(const CancelToken* cancel) {
  if (cancel != nullptr && cancel->cancelled())
    return Error(ErrorCode::kCancelled, "stopped on request");
  return {};
}

// A pass of at most `num_rows` rows belongs to one of two classes.
WorkspaceLimits limits_of(int num_rows, const RunnerOptions& options) {
  if (num_rows <= options.decode_rows) return {options.decode_rows, options.decode_rows};
  return {options.prefill_rows, options.prefill_logit_rows};
}

}  // namespace

WorkspaceBytes Runner::workspace_bytes_needed(const ModelConfig& config, DType activations,
                                              RunnerOptions options) {
  WorkspaceBytes total;
  options.decode_rows = std::min(options.decode_rows, options.prefill_rows);
  for (const int rows : {options.decode_rows, options.prefill_rows}) {
    total += Forward::bytes_needed(config, activations, limits_of(rows, options));
  }
  return total;
}

WorkspaceLimits Runner::limits_needed(const RunnerOptions& options) {
  return {options.prefill_rows, std::max(options.prefill_logit_rows,
                                         std::min(options.decode_rows, options.prefill_rows))};
}

void ReturnForward::operator()(Forward* forward) const {
  if (!forward->done()) runner->finish_kept();  // somebody gave the pass up between two layers
  forward->release();
  for (Runner::Pass& pass : runner->passes_) {
    if (pass.forward.get() == forward) pass.lent = false;
  }
}

Runner::Runner(std::shared_ptr<const Engine> engine, std::unique_ptr<ExpertProvider> experts,
               RunnerOptions options)
    : engine_(std::move(engine)), experts_(std::move(experts)), options_(options) {
  for (const LayerSpec& spec : engine_->config().layers()) {
    if (spec.role == LayerRole::kMain && spec.ffn == FfnKind::kMoe)
      moe_layers_.push_back(spec.index);
  }
  counted_.resize(moe_layers_.size());
  step_counters_.resize(moe_layers_.size());
}

Runner::~Runner() { finish_kept(); }

Result<std::unique_ptr<Runner>> Runner::create(std::shared_ptr<const Engine> engine,
                                               std::unique_ptr<ExpertProvider> experts,
                                               RunnerOptions options) {
  CHECK(options.context_tokens > 0 && options.prefill_rows > 0 && options.decode_rows > 0 &&
            options.prefill_logit_rows > 0,
        "ctx {}, prefill rows {}, decode rows {}, logit rows {}", options.context_tokens,
        options.prefill_rows, options.decode_rows, options.prefill_logit_rows);
  options.decode_rows = std::min(options.decode_rows, options.prefill_rows);
  auto runner = std::unique_ptr<Runner>(new Runner(std::move(engine), std::move(experts), options));
  const int num_pages = pages_for(options.context_tokens);
  const Engine& loaded = *runner->engine_;
  ASSIGN_OR_RETURN(runner->kv_pool_,
                   KvPool::create(loaded.config(), loaded.placement(), num_pages));
  for (const int rows : {options.decode_rows, options.prefill_rows}) {
    RETURN_IF_ERROR(runner->add_pass(rows));
  }
  runner->tokens_.reserve(options.prefill_rows);
  runner->segments_.reserve(options.prefill_rows);
  runner->fed_.reserve(options.prefill_rows);
  return runner;
}

std::int64_t Runner::workspace_bytes() const {
  std::int64_t total = 0;
  for (const Pass& pass : passes_) total += pass.bytes;
  return total;
}

Status Runner::add_pass(int num_rows) {
  const WorkspaceLimits limits = limits_of(num_rows, options_);
  ASSIGN_OR_RETURN(auto forward, Forward::create(*this, limits));
  const Placement& placement = engine_->placement();
  const std::int64_t bytes =
      Forward::bytes_needed(engine_->config(), placement.dense(0).activation_dtype(), limits)
          .total(placement.size());
  const auto at =
      std::upper_bound(passes_.begin(), passes_.end(), limits.max_rows,
                       [](int rows, const Pass& pass) { return rows < pass.limits.max_rows; });
  passes_.insert(at, {std::move(forward), limits, bytes, false});
  return {};
}

Result<Forward*> Runner::lend_pass(int num_rows, int num_logit_rows) {
  if (num_rows > options_.prefill_rows) {
    return make_error(ErrorCode::kResource, "a step of {} rows, at most {} were planned for",
                      num_rows, options_.prefill_rows);
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (Pass& pass : passes_) {  // smallest first
      if (pass.lent || pass.limits.max_rows < num_rows ||
          pass.limits.max_logit_rows < num_logit_rows)
        continue;
      pass.lent = true;
      return pass.forward.get();
    }
    RETURN_IF_ERROR(
        add_pass(num_logit_rows > options_.decode_rows ? options_.prefill_rows : num_rows));
  }
  return make_error(ErrorCode::kResource,
                    "logits of {} rows in one step, at most {} were planned for", num_logit_rows,
                    options_.prefill_logit_rows);
}

Result<ForwardPtr> Runner::begin(const StepBatch& batch) {
  int num_logit_rows = 0;
  for (const Segment& segment : batch.segments) {
    num_logit_rows += segment.want == Logits::kAll    ? segment.num_rows
                      : segment.want == Logits::kLast ? 1
                                                      : 0;
  }
  ASSIGN_OR_RETURN(Forward* const lent,
                   lend_pass(static_cast<int>(batch.tokens.size()), num_logit_rows));
  ForwardPtr forward(lent, ReturnForward{this});
  StepBatch hooked = batch;
  if (hooked.hooks == nullptr) hooked.hooks = hooks_;
  RETURN_IF_ERROR(forward->start(*this, hooked));
  return forward;
}

Result<ForwardPtr> Runner::run(const StepBatch& batch) {
  ASSIGN_OR_RETURN(ForwardPtr forward, begin(batch));
  while (!forward->done()) RETURN_IF_ERROR(forward->run_layer(*this));
  return forward;
}

Status Runner::step(std::span<Session* const> sessions, const CancelToken* cancel) {
  tokens_.clear();
  segments_.clear();
  fed_.clear();
  // 1. Sessions in decode first, one row each; then prompts, as many rows as the budget holds.
  for (const Purpose purpose : {Purpose::kDecode, Purpose::kPrefill}) {
    for (Session* session : sessions) {
      if (session->pending().empty() || session->pending_purpose() != purpose) continue;
      const int room = options_.prefill_rows - static_cast<int>(tokens_.size());
      const int wanted = static_cast<int>(session->pending().size());
      const int num_rows = std::min(wanted, room);
      if (num_rows == 0 || static_cast<int>(fed_.size()) == options_.prefill_logit_rows) break;
      segments_.push_back({&session->kv_, static_cast<int>(tokens_.size()), num_rows, purpose,
                           num_rows == wanted ? Logits::kLast : Logits::kNone});
      const auto rows = session->pending().first(static_cast<std::size_t>(num_rows));
      tokens_.insert(tokens_.end(), rows.begin(), rows.end());
      fed_.push_back(session);
    }
  }
  if (fed_.empty()) return {};
  // 2. One pass for all.
  ASSIGN_OR_RETURN(const ForwardPtr forward, run({tokens_, segments_, nullptr, cancel}));
  // 3. Whoever is fed to the end samples.
  int logit_row = 0;
  const RowsView logits = forward->logits();
  for (std::size_t i = 0; i < fed_.size(); ++i) {
    if (segments_[i].want == Logits::kLast) fed_[i]->sample(logits.row(logit_row++));
  }
  return {};
}

Status Runner::wait(Backend& backend, Event event, const CancelToken* cancel) {
  while (!backend.done(event)) {
    release_if_read();
    RETURN_IF_ERROR(backend.status());
    RETURN_IF_ERROR(check_cancelled(cancel));
    std::this_thread::yield();
  }
  RETURN_IF_ERROR(check_cancelled(cancel));
  return backend.status();
}

Status Runner::idle(const CancelToken* cancel) {
  RETURN_IF_ERROR(check_cancelled(cancel));
  constexpr std::chrono::milliseconds kLongest(20);  // until a cancel token is seen
  experts_->wait(kLongest);
  return {};
}

void Runner::keep(ExpertSetPtr set, Backend& backend) {
  CHECK(kept_.set == nullptr, "two sets of experts are kept");
  if (!backend.computes_at_once()) kept_ = {std::move(set), &backend, backend.record()};
}

void Runner::release_if_read() {
  if (kept_.set != nullptr && kept_.backend->done(kept_.read)) drop_kept();
}

Status Runner::release_kept(const CancelToken* cancel) {
  if (kept_.set != nullptr) RETURN_IF_ERROR(wait(*kept_.backend, kept_.read, cancel));
  drop_kept();
  return {};
}

void Runner::finish_kept() {
  if (kept_.set != nullptr) (void)kept_.backend->finish();
  drop_kept();
}

LayerCounters Runner::expert_counters() const {
  LayerCounters total;
  for (const int layer : moe_layers_) total += experts_->counters(layer);
  return total;
}

void Runner::on_finished(const Forward& forward) {
  if (listener_ == nullptr) return;
  for (std::size_t i = 0; i < moe_layers_.size(); ++i) {
    const LayerCounters now = experts_->counters(moe_layers_[i]);
    step_counters_[i] = now - counted_[i];
    counted_[i] = now;
  }
  listener_->on_step({forward.num_rows(), forward.num_decode_rows(),
                      clock_.now_us() - forward.started_us(), moe_layers_, step_counters_});
}

}  // namespace stoker
