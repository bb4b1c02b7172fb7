#include "tools/device_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

namespace stoker::tools {
namespace {

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

int devices_on(std::span<const DeviceRoom> rooms, int gpu) {
  return static_cast<int>(std::count_if(rooms.begin(), rooms.end(),
                                        [&](const DeviceRoom& room) { return room.gpu == gpu; }));
}

// The device whose share of the whole a layer's middle falls into.
std::vector<int> share_layers(int num_layers, std::span<const DevicePlan::Device> devices) {
  double total = 0;
  for (const DevicePlan::Device& device : devices)
    total += static_cast<double>(device.budget_bytes);
  std::vector<int> layer_device;
  for (int layer = 0; layer < num_layers; ++layer) {
    const double middle = (layer + 0.5) / num_layers * total;
    double end = 0;
    int index = -1;
    do {
      end += static_cast<double>(devices[static_cast<std::size_t>(++index)].budget_bytes);
    } while (end < middle && index + 1 < static_cast<int>(devices.size()));
    layer_device.push_back(index);
  }
  return layer_device;
}

}  // namespace

Result<DevicePlan> plan_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                std::int64_t vram_bytes) {
  const auto num_layers = need.weight_bytes.size();
  CHECK(!rooms.empty() && num_layers > 0 && need.kv_bytes.size() == num_layers &&
            need.num_experts.size() == num_layers,
        "{} devices, layers {}, {}, {}", rooms.size(), num_layers, need.kv_bytes.size(),
        need.num_experts.size());
  // 1. Budgets.
  DevicePlan plan;
  for (const DeviceRoom& room : rooms) {
    const std::int64_t share = room.free_bytes / devices_on(rooms, room.gpu);
    if (vram_bytes > share) {
      return make_error(ErrorCode::kResource,
                        "--vram {:.2f} GiB: GPU {} has {:.2f} GiB free for each of its {} "
                        "device(s); free some or give it less",
                        gib(vram_bytes), room.gpu, gib(share), devices_on(rooms, room.gpu));
    }
    plan.devices.push_back(
        {.gpu = room.gpu, .budget_bytes = vram_bytes > 0 ? vram_bytes : share - share / 16});
  }
  // 2. Layers.
  plan.layer_device = share_layers(static_cast<int>(num_layers), plan.devices);
  std::vector<std::int64_t> weights(rooms.size()), kv(rooms.size()), experts(rooms.size());
  for (std::size_t layer = 0; layer < num_layers; ++layer) {
    const auto device = static_cast<std::size_t>(plan.layer_device[layer]);
    weights[device] += need.weight_bytes[layer];
    kv[device] += need.kv_bytes[layer];
    experts[device] += need.num_experts[layer];
    ++plan.devices[device].num_layers;
  }
  weights[static_cast<std::size_t>(plan.layer_device.back())] += need.head_bytes;
  // 3. What is left holds experts.
  const auto workspace_of = [&](const DevicePlan::Device& device) {
    return device.num_layers > 0 ? need.workspace_bytes : 0;
  };
  std::optional<std::size_t> worst;  // device, of those that do not hold their layers
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    DevicePlan::Device& device = plan.devices[i];
    device.fixed_bytes = weights[i] + kv[i] + workspace_of(device) + rooms[i].scratch_bytes;
    if (device.fixed_bytes <= device.budget_bytes) continue;
    if (!worst || device.fixed_bytes > plan.devices[*worst].fixed_bytes) worst = i;
  }
  if (worst) {
    const DevicePlan::Device& device = plan.devices[*worst];
    return make_error(
        ErrorCode::kResource,
        "device {} (GPU {}) may take {:.2f} GiB; its {} layers need {:.2f} for weights, {:.2f} "
        "for {} tokens of context, {:.2f} for activations and {:.2f} for scratch: give it at least "
        "{} bytes ({:.2f} GiB, --vram), use more devices (--devices), shorten --ctx or lower "
        "--prefill-rows",
        *worst, device.gpu, gib(device.budget_bytes), device.num_layers, gib(weights[*worst]),
        gib(kv[*worst]), need.context_tokens, gib(workspace_of(device)),
        gib(rooms[*worst].scratch_bytes), device.fixed_bytes, gib(device.fixed_bytes));
  }
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    DevicePlan::Device& device = plan.devices[i];
    if (need.slot_bytes == 0) continue;
    const std::int64_t slots = (device.budget_bytes - device.fixed_bytes) / need.slot_bytes;
    device.num_slots = static_cast<int>(std::min(slots, experts[i]));
  }
  return plan;
}

}  // namespace stoker::tools
