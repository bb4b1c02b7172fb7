// The mixture-of-experts half of a layer (spec 3.7): router, shared expert, routed experts as they
// become runnable, and the look at what later layers may want.
#include <algorithm>

#include "core/runtime/forward.h"
#include "core/runtime/runner.h"

namespace stoker {

// normed -> h, after dense_part().
Status Forward::mixture_of_experts(Runner& runner, const LayerSpec& spec,
                                   const LayerWeights& weights) {
  Backend& backend = this->backend();
  RETURN_IF_ERROR(take_routes(runner, spec));
  // 1. What is missing is asked for before the host computes anything else.
  ASSIGN_OR_RETURN(ExpertSetPtr set, runner.experts().demand(spec.index, host_->plan.uses()));
  // 2. The shared expert while the drive works, unless a device computes it already.
  if (backend.computes_at_once()) shared_expert(spec, weights, num_ranked_wanted(runner));
  // 3. Experts in whatever order they come; their sum in ascending id.
  if (Status status = run_experts(runner, *set); !status.ok()) {
    finish_backends();  // nothing may still read what the set gives back
    return status;
  }
  const Workspace& w = workspace();
  const ExpertPlan& plan = host_->plan;
  const TensorView shared = spec.shared_width != 0 ? rows(w.shared_out) : TensorView();
  backend.combine(step_, {sites_->out(), plan.slots(), plan.slot_weights(), shared, rows(w.h)});
  // The leases end when what was enqueued has read the experts. The host does not wait for that
  // here, but goes on to the next layer.
  runner.keep(std::move(set), backend);
  return {};
}

// The shared expert, and with its output the look ahead.
void Forward::shared_expert(const LayerSpec& spec, const LayerWeights& weights, int num_ranked) {
  const Workspace& w = workspace();
  TensorView shared;
  if (spec.shared_width != 0) {
    shared = rows(w.shared_out);
    backend().gated_ffn(step_, *weights.gate, *weights.up, *weights.down, rows(w.normed),
                        rows(w.ffn_gate).col_slice(0, spec.shared_width),
                        rows(w.ffn_up).col_slice(0, spec.shared_width), shared);
  }
  look_ahead(num_ranked, shared, rows(w.h));  // free until the experts are combined
}

RouteMailbox Forward::mailbox(const LayerSpec& spec) const {
  const auto num_choices = static_cast<std::size_t>(step_.num_rows()) * spec.router.top_k;
  return {{host_->route_experts.view().row<std::int32_t>(0), num_choices},
          {host_->route_weights.view().row<float>(0), num_choices}};
}

// The router's choice, on its way to the mailbox.
void Forward::route(const LayerSpec& spec, const LayerWeights& weights,
                    std::span<const std::int32_t> forced) {
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  const TensorView logits = rows(w.router_logits).col_slice(0, spec.router.num_experts);
  backend.linear(step_, *weights.router, rows(w.normed), logits);
  backend.route(step_, {spec.router, logits, weights.router_bias.view(), forced, mailbox(spec)});
  sites_->begin(step_, engine_.placement().dense_index(next_layer_),
                step_.num_rows() * spec.router.top_k);
}

// Waits for it.
Status Forward::take_routes(Runner& runner, const LayerSpec& spec) {
  RETURN_IF_ERROR(runner.wait(backend(), routed_, cancel_));
  RETURN_IF_ERROR(runner.release_kept(cancel_));
  const RouteMailbox mailbox = this->mailbox(spec);
  if (hooks_ != nullptr) {
    const std::span<const float> forced = hooks_->forced_weights(spec.index);
    std::copy(forced.begin(), forced.end(), mailbox.weights.begin());
    hooks_->on_routes(spec.index, mailbox);
  }
  runner.experts().note_choices(spec.index, step_.tokens, mailbox.experts);
  host_->plan.build(mailbox, ranges_, step_.num_rows());
  return {};
}

// Experts per row that a look ahead ranks.
int Forward::num_ranked_wanted(Runner& runner) const {
  return std::max(runner.experts().num_ranked_guesses(), hooks_ ? hooks_->num_ranked_wanted() : 0);
}

// The routers of the next MoE layers on the current residual with `added` (the output of the shared
// expert, or of the dense layer before the first MoE layer; empty: nothing), those layers'
// attention left out: what tell_guesses() passes on once an event after this is done. `state` is
// scratch.
void Forward::look_ahead(int num_ranked, const TensorView& added, const TensorView& state) {
  guesses_.clear();
  if (num_ranked == 0) return;
  Backend& backend = this->backend();
  const Workspace& w = workspace();
  const std::span<const LayerSpec> layers = engine_.config().layers();
  const float eps = engine_.config().rms_norm_eps;
  bool copied = false;
  int lead = 0;
  for (int layer = next_layer_ + 1; layer < engine_.num_layers() && lead < kMaxLead; ++layer) {
    const LayerSpec& spec = layers[layer];
    if (spec.ffn != FfnKind::kMoe) continue;
    ++lead;
    if (&engine_.placement().dense(layer) != &backend) break;  // its router lies elsewhere
    const LayerWeights& weights = engine_.weights().layers[layer];
    const TensorView normed = rows(w.look_ahead);
    if (!copied) backend.copy(state, rows(w.residual));
    if (!copied && !added.empty()) {
      backend.add_rms_norm(step_, added, state, /*first=*/false, weights.post_attention_norm.view(),
                           eps, normed);
    } else {
      backend.rms_norm(step_, state, weights.post_attention_norm.view(), eps, normed);
    }
    copied = true;
    const TensorView logits = rows(w.router_logits).col_slice(0, spec.router.num_experts);
    backend.linear(step_, *weights.router, normed, logits);
    RouterSpec ranking = spec.router;
    ranking.top_k = std::min(
        num_ranked, spec.router.num_experts / spec.router.num_groups * spec.router.top_groups);
    const auto count = static_cast<std::size_t>(step_.num_rows()) * ranking.top_k;
    const std::int64_t first = (lead - 1) * std::int64_t{max_rows()};
    const RouteMailbox mailbox = {{host_->guessed_experts.view().row<std::int32_t>(first), count},
                                  {host_->guessed_weights.view().row<float>(first), count}};
    backend.route(step_, {ranking, logits, weights.router_bias.view(), {}, mailbox});
    guesses_.push_back({layers[next_layer_].index, spec.index, lead, step_.num_rows(),
                        ranking.top_k, mailbox.experts});
  }
  if (guesses_.empty()) return;
  guessing_ = &backend;
  guesses_ready_ = backend.record();
}

// Passes the guesses on, once the backend has written them.
void Forward::tell_guesses(Runner& runner) {
  if (guesses_.empty() || !guessing_->done(guesses_ready_)) return;
  for (const LookAhead& guesses : guesses_) {
    LookAhead forced;
    if (hooks_ != nullptr) {
      hooks_->on_look_ahead(guesses);
      forced = hooks_->forced_look_ahead(guesses.layer, guesses.lead);
    }
    runner.experts().hint(forced.num_ranked > 0 ? forced : guesses);
  }
  guesses_.clear();
}

Status Forward::tell_all_guesses(Runner& runner) {
  if (guesses_.empty()) return {};
  RETURN_IF_ERROR(runner.wait(*guessing_, guesses_ready_, cancel_));
  tell_guesses(runner);
  return {};
}

Status Forward::run_experts(Runner& runner, ExpertSet& set) {
  const std::span<const ExpertUse> uses = host_->plan.uses();
  while (!set.exhausted()) {
    tell_guesses(runner);
    const std::size_t ready = set.take_ready(host_->parts);
    if (ready > 0) {
      sites_->run(step_, uses, {host_->parts.data(), ready}, host_->site_parts);
      continue;
    }
    RETURN_IF_ERROR(set.status());
    if (set.waits_for_slots()) {
      sites_->collect(uses);
      RETURN_IF_ERROR(runner.wait(backend(), backend().record(), cancel_));
      set.retire_taken();
    } else {
      sites_->poll();  // parts with guards pass them as they are computed
      RETURN_IF_ERROR(sites_->status());
      RETURN_IF_ERROR(runner.idle(cancel_));
    }
  }
  sites_->collect(uses);
  RETURN_IF_ERROR(sites_->status());
  sites_->report_times(runner.experts());
  tell_guesses(runner);
  return {};
}

}  // namespace stoker
