#include "tests/support/device_backend.h"

#include <cstring>
#include <new>
#include <thread>

namespace stoker::test {
namespace {

constexpr std::align_val_t kSlotAlign{4096};

// The same memory under another device's name.
Tensor renamed(Tensor tensor, DeviceId device) {
  TensorView view = tensor.view();
  view.device = device;
  auto owner = std::make_shared<Tensor>(std::move(tensor));
  return Tensor(view, [owner](void*) {});
}

}  // namespace

TensorView DeviceBackend::here(TensorView view) const {
  if (view.empty()) return view;
  CHECK(view.device == device_, "memory of device {} on device {}", view.device.index,
        device_.index);
  view.device = kHost;
  return view;
}

QuantView DeviceBackend::here(QuantView view) {
  if (view.payload == nullptr) return view;
  CHECK(view.device == device_ || view.device == kHost, "weights of device {} on device {}",
        view.device.index, device_.index);
  view.device = kHost;
  return view;
}

Result<Tensor> DeviceBackend::allocate(DType dtype, std::int64_t rows, std::int64_t cols) {
  ASSIGN_OR_RETURN(Tensor tensor, inner_->allocate(dtype, rows, cols));
  return renamed(std::move(tensor), device_);
}

Result<Tensor> DeviceBackend::adopt_vector(const TensorView& host) {
  ASSIGN_OR_RETURN(Tensor tensor, inner_->adopt_vector(host));
  return renamed(std::move(tensor), device_);
}

void DeviceBackend::wait_for(Backend& other, Event event) {
  while (!other.done(event)) std::this_thread::yield();
}

void DeviceBackend::copy_in(const TensorView& dst, const void* src) {
  inner_->copy_in(here(dst), src);
}
void DeviceBackend::copy_out(void* dst, const TensorView& src) { inner_->copy_out(dst, here(src)); }
void DeviceBackend::copy(const TensorView& dst, const TensorView& src) {
  CHECK(src.device != kHost, "copy() from the host to device {}", device_.index);
  TensorView from = src;  // of any device
  from.device = kHost;
  inner_->copy(here(dst), from);
}

void DeviceBackend::embed(const StepView& step, const BackendWeight& table, TensorView out) {
  inner_->embed(step, table, here(out));
}
void DeviceBackend::linear(const StepView& step, const BackendWeight& weight, TensorView x,
                           TensorView y) {
  inner_->linear(step, weight, here(x), here(y));
}
void DeviceBackend::linears(const StepView& step, std::span<const LinearOutput> outputs,
                            TensorView x) {
  std::vector<LinearOutput> inner(outputs.begin(), outputs.end());
  for (LinearOutput& output : inner) output.y = here(output.y);
  inner_->linears(step, inner, here(x));
}
void DeviceBackend::logits(const StepView& step, const BackendWeight& head, TensorView x,
                           TensorView y) {
  inner_->logits(step, head, here(x), here(y));
}
void DeviceBackend::gather_logit_rows(const StepView& step, TensorView x, TensorView out) {
  inner_->gather_logit_rows(step, here(x), here(out));
}
void DeviceBackend::rms_norm(const StepView& step, TensorView x, TensorView weight, float eps,
                             TensorView out) {
  inner_->rms_norm(step, here(x), here(weight), eps, here(out));
}
void DeviceBackend::add_rms_norm(const StepView& step, TensorView h, TensorView residual,
                                 bool first, TensorView weight, float eps, TensorView out) {
  inner_->add_rms_norm(step, here(h), here(residual), first, here(weight), eps, here(out));
}
void DeviceBackend::layer_norm(const StepView& step, TensorView x, TensorView weight,
                               TensorView bias, float eps) {
  inner_->layer_norm(step, here(x), here(weight), here(bias), eps);
}
void DeviceBackend::rope(const StepView& step, TensorView x, int num_heads, int head_stride,
                         int offset, int rope_dim, RopeStyle style) {
  inner_->rope(step, here(x), num_heads, head_stride, offset, rope_dim, style);
}
void DeviceBackend::scale(const StepView& step, TensorView x, float factor) {
  inner_->scale(step, here(x), factor);
}
void DeviceBackend::append_latent(const StepView& step, TensorView x, KvLayer dst) {
  inner_->append_latent(step, here(x), here(dst));
}
void DeviceBackend::append_index_key(const StepView& step, TensorView x, KvLayer dst) {
  inner_->append_index_key(step, here(x), here(dst));
}
void DeviceBackend::select(const StepView& step, const SelectParams& params) {
  inner_->select(step, {params.dims, here(params.queries), here(params.weights), here(params.keys),
                        here(params.out)});
}

void DeviceBackend::attend(const StepView& step, const AttendParams& params) {
  AttendParams inner = params;
  Selection selection;
  if (params.selection != nullptr) {
    selection = here(*params.selection);
    inner.selection = &selection;
  }
  inner.queries = here(params.queries);
  inner.latents = here(params.latents);
  inner.out = here(params.out);
  inner_->attend(step, inner);
}

void DeviceBackend::silu_mul(const StepView& step, TensorView gate, TensorView up, TensorView out) {
  inner_->silu_mul(step, here(gate), here(up), here(out));
}

void DeviceBackend::route(const StepView& step, const RouteParams& params) {
  RouteParams inner = params;
  inner.logits = here(params.logits);
  inner.bias = here(params.bias);
  inner_->route(step, inner);
}

void DeviceBackend::experts(const StepView& step, const ExpertParams& params) {
  parts_.clear();
  for (const ExpertPart& part : params.parts) {
    for (int i = 0; i < part.num_blocks; ++i) parts_.push_back(part.block_at(i));
  }
  for (ExpertPart& part : parts_) {
    CHECK(part.site == device_, "a part for device {} on device {}", part.site.index,
          device_.index);
    ++num_parts_;
    if (part.device() == kHost) ++num_uploaded_parts_;
    part.gate = here(part.gate);
    part.up = here(part.up);
    part.down = here(part.down);
  }
  inner_->experts(step,
                  {here(params.x), here(params.hidden), here(params.out), params.uses, parts_});
}

void DeviceBackend::combine(const StepView& step, const CombineParams& params) {
  CombineParams inner = params;
  inner.expert_out = here(params.expert_out);
  inner.shared = here(params.shared);
  inner.out = here(params.out);
  inner_->combine(step, inner);
}

ExpertCosts some_costs(int num_devices) {
  const std::vector<DeviceCosts> devices(
      static_cast<std::size_t>(num_devices),
      {.compute = {.expert_us = 15, .row_us = 1}, .upload_us_per_byte = 0.02});
  return ExpertCosts({.expert_us = 260, .row_us = 10}, devices);
}

void MemoryDeviceSlots::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, kSlotAlign);
}

MemoryDeviceSlots::MemoryDeviceSlots(DeviceId device, int num_slots, std::int64_t slot_bytes,
                                     int polls_per_copy)
    : device_(device),
      num_slots_(num_slots),
      slot_bytes_(slot_bytes),
      polls_per_copy_(polls_per_copy),
      memory_(new(kSlotAlign) std::byte[static_cast<std::size_t>(num_slots * slot_bytes)]) {}

MemoryDeviceSlots::~MemoryDeviceSlots() {
  while (completed_ < last_) complete_next();
}

UploadTicket MemoryDeviceSlots::upload(int slot, std::int64_t offset,
                                       std::span<const std::byte> src) {
  CHECK(offset >= 0 && offset + static_cast<std::int64_t>(src.size()) <= slot_bytes_,
        "bytes [{}, +{}) of a slot of {}", offset, src.size(), slot_bytes_);
  std::byte* const dst = this->slot(slot) + offset;
  std::memset(dst, 0xA5, src.size());  // whoever reads it too early computes nonsense
  copies_.push_back({dst, src});
  return ++last_;
}

void MemoryDeviceSlots::complete_next() {
  const Copy copy = copies_.front();
  copies_.pop_front();
  ++completed_;
  if (fails_ && status_.ok()) status_ = Error(ErrorCode::kIo, "the device was lost");
  if (status_.ok()) std::memcpy(copy.dst, copy.src.data(), copy.src.size());
}

bool MemoryDeviceSlots::done(UploadTicket ticket) {
  if (completed_ < ticket && ++num_polls_ % polls_per_copy_ == 0) complete_next();
  return completed_ >= ticket;
}

}  // namespace stoker::test
