#include "tests/support/forwarding_backend.h"

#include <bit>
#include <tuple>
#include <type_traits>

namespace stoker::test {

// keep() gives what the inner backend gets for an argument, to be held for as long as the call is,
// and notes what tells the argument from others.
class ForwardingBackend::Arguments {
 public:
  explicit Arguments(const ForwardingBackend& backend) : backend_(backend) {}

  // Parameters together with what they point to.
  template <typename Params>
  struct Held {
    std::shared_ptr<const Params> params;
    operator const Params&() const { return *params; }
  };

  template <typename T>
    requires std::is_scalar_v<T>
  T keep(T value) {
    if constexpr (std::is_pointer_v<T>) {
      noted_.push_back(reinterpret_cast<std::uintptr_t>(value));
    } else if constexpr (std::is_same_v<T, float>) {
      noted_.push_back(std::bit_cast<std::uint32_t>(value));
    } else {
      noted_.push_back(static_cast<std::uint64_t>(value));
    }
    return value;
  }
  template <typename T>
  std::span<T> keep(std::span<T> memory) {
    return {keep(memory.data()), keep(memory.size())};
  }
  auto keep(const StepView& step) { return std::cref(*keep(&step)); }
  auto keep(const BackendWeight& weight) { return std::cref(*keep(&weight)); }
  TensorView keep(const TensorView& view) {
    keep(view.data);
    for (const std::int64_t size : {view.rows, view.cols, view.row_stride}) keep(size);
    keep(view.dtype);
    keep(view.device.index);
    return backend_.inner_view(view);
  }
  KvLayer keep(const KvLayer& layer) { return {keep(layer.rows), layer.row}; }
  Selection keep(const Selection& selection) {
    return {keep(selection.positions), keep(selection.counts)};
  }
  std::vector<LinearOutput> keep(std::span<const LinearOutput> outputs) {
    std::vector<LinearOutput> kept;
    for (const LinearOutput& output : outputs) {
      kept.push_back({keep(output.weight), keep(output.y)});
    }
    return kept;
  }
  SelectParams keep(const SelectParams& params) {
    keep(params.dims.top_k);
    return {params.dims, keep(params.queries), keep(params.weights), keep(params.keys),
            keep(params.out)};
  }
  Held<AttendParams> keep(const AttendParams& params) {
    struct Kept {
      AttendParams params;
      Selection selection;
    };
    const auto kept = std::make_shared<Kept>();
    const bool selected = keep(params.selection != nullptr);
    if (selected) kept->selection = keep(*params.selection);
    kept->params = {params.dims,
                    keep(params.queries),
                    keep(params.kv_b),
                    keep(params.latents),
                    selected ? &kept->selection : nullptr,
                    keep(params.out)};
    return {{kept, &kept->params}};
  }
  RouteParams keep(const RouteParams& params) {
    keep(params.spec.top_k);
    return {params.spec,
            keep(params.logits),
            keep(params.bias),
            keep(params.forced),
            {keep(params.mailbox.experts), keep(params.mailbox.weights)}};
  }
  Held<ExpertParams> keep(const ExpertParams& params) {
    struct Kept {
      std::vector<ExpertUse> uses;
      std::vector<std::vector<std::int32_t>> rows;  // of each use
      std::vector<std::vector<float>> weights;
      std::vector<ExpertPart> parts;
      ExpertParams params;
    };
    const auto kept = std::make_shared<Kept>();
    kept->uses.assign(params.uses.begin(), params.uses.end());
    for (ExpertUse& use : kept->uses) {
      use.rows = kept->rows.emplace_back(use.rows.begin(), use.rows.end());
      use.weights = kept->weights.emplace_back(use.weights.begin(), use.weights.end());
    }
    kept->parts.assign(params.parts.begin(), params.parts.end());
    kept->params = {keep(params.x), keep(params.hidden), keep(params.out), kept->uses, kept->parts};
    return {{kept, &kept->params}};
  }
  Held<CombineParams> keep(const CombineParams& params) {
    struct Kept {
      std::vector<std::int32_t> slots;
      std::vector<float> weights;
      CombineParams params;
    };
    const auto kept = std::make_shared<Kept>();
    kept->slots.assign(params.slots.begin(), params.slots.end());
    kept->weights.assign(params.weights.begin(), params.weights.end());
    kept->params = {keep(params.expert_out), kept->slots, kept->weights, keep(params.shared),
                    keep(params.out)};
    return {{kept, &kept->params}};
  }

  std::vector<std::uint64_t> noted() && { return std::move(noted_); }

 private:
  const ForwardingBackend& backend_;
  std::vector<std::uint64_t> noted_;
};

template <typename... Params, typename... Args>
void ForwardingBackend::forward(std::string_view name, void (Backend::*operation)(Params...),
                                const Args&... args) {
  Arguments arguments(*this);
  const std::tuple kept{inner_.get(), arguments.keep(args)...};
  call({name, std::move(arguments).noted(), [=] { std::apply(operation, kept); }});
}

void ForwardingBackend::copy_in(const TensorView& dst, const void* src) {
  forward("copy_in", &Backend::copy_in, dst, src);
}
void ForwardingBackend::copy_out(void* dst, const TensorView& src) {
  forward("copy_out", &Backend::copy_out, dst, src);
}
void ForwardingBackend::copy(const TensorView& dst, const TensorView& src) {
  forward("copy", &Backend::copy, dst, src);
}
void ForwardingBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  forward("embed", &Backend::embed, step, table, out);
}
void ForwardingBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                               TensorView y) {
  forward("linear", &Backend::linear, step, weight, x, y);
}
void ForwardingBackend::linears(const StepView& step, std::span<const LinearOutput> outputs,
                                TensorView x) {
  forward("linears", &Backend::linears, step, outputs, x);
}
void ForwardingBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                               TensorView y) {
  forward("logits", &Backend::logits, step, head, x, y);
}
void ForwardingBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  forward("gather_logit_rows", &Backend::gather_logit_rows, step, x, out);
}
void ForwardingBackend::rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                                 TensorView out) {
  forward("rms_norm", &Backend::rms_norm, step, x, weight, eps, out);
}
void ForwardingBackend::add_rms_norm(const StepView& step, TensorView h, TensorView residual,
                                     bool first, TensorView weight, float eps, TensorView out) {
  forward("add_rms_norm", &Backend::add_rms_norm, step, h, residual, first, weight, eps, out);
}
void ForwardingBackend::layer_norm(const StepView& step, TensorView x, TensorView weight,
                                   TensorView bias, float eps) {
  forward("layer_norm", &Backend::layer_norm, step, x, weight, bias, eps);
}
void ForwardingBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                             int offset, int rope_dim, RopeStyle style) {
  forward("rope", &Backend::rope, step, x, num_heads, head_stride, offset, rope_dim, style);
}
void ForwardingBackend::scale(const StepView& step, TensorView x, float factor) {
  forward("scale", &Backend::scale, step, x, factor);
}
void ForwardingBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  forward("append_latent", &Backend::append_latent, step, x, dst);
}
void ForwardingBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  forward("append_index_key", &Backend::append_index_key, step, x, dst);
}
void ForwardingBackend::select(const StepView& step, const SelectParams& params) {
  forward("select", &Backend::select, step, params);
}
void ForwardingBackend::attend(const StepView& step, const AttendParams& params) {
  forward("attend", &Backend::attend, step, params);
}
void ForwardingBackend::silu_mul(const StepView& step, TensorView gate, TensorView up,
                                 TensorView out) {
  forward("silu_mul", &Backend::silu_mul, step, gate, up, out);
}
void ForwardingBackend::route(const StepView& step, const RouteParams& params) {
  forward("route", &Backend::route, step, params);
}
void ForwardingBackend::experts(const StepView& step, const ExpertParams& params) {
  forward("experts", &Backend::experts, step, params);
}
void ForwardingBackend::combine(const StepView& step, const CombineParams& params) {
  forward("combine", &Backend::combine, step, params);
}

}  // namespace stoker::test
