#include "tools/device_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <ranges>
#include <utility>

namespace stoker::tools {
namespace {

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

std::string layers_in_words(int count) {
  return count == 1 ? "1 layer" : fmt::format("{} layers", count);
}

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

// A plan, or which device it fails for.
struct Attempt {
  struct Refusal {
    std::size_t device = 0;
    std::string why;  // of it, in a few words
    std::string message;
    bool more_than_free = false;  // --vram is, whatever the model needs
  };
  DevicePlan plan;
  std::optional<Refusal> refusal;
};

// What a plan's layers take of its devices, with so many pages of context.
struct Shares {
  std::vector<std::int64_t> weights, kv;
};

Shares shares_of(const DeviceNeed& need, const DevicePlan& plan, int num_pages) {
  const std::size_t num_devices = plan.devices.size();
  Shares shares{std::vector<std::int64_t>(num_devices), std::vector<std::int64_t>(num_devices)};
  for (std::size_t layer = 0; layer < plan.layer_device.size(); ++layer) {
    const auto device = static_cast<std::size_t>(plan.layer_device[layer]);
    shares.weights[device] += need.weight_bytes[layer];
    for (const std::int64_t page_bytes : need.kv_page_bytes[layer]) {
      shares.kv[device] += device_allocation_bytes(page_bytes * num_pages);
    }
  }
  shares.weights[static_cast<std::size_t>(plan.layer_device.back())] += need.head_bytes;
  return shares;
}

// A context that the plan would fit with; at least: activations and scratch may shrink with it.
std::int64_t context_that_fits(const DeviceNeed& need, const DevicePlan& plan,
                               const Shares& shares) {
  const auto fits = [&](int num_pages) {
    const Shares shorter = shares_of(need, plan, num_pages);
    for (std::size_t i = 0; i < plan.devices.size(); ++i) {
      const DevicePlan::Device& device = plan.devices[i];
      if (device.fixed_bytes - shares.kv[i] + shorter.kv[i] > device.budget_bytes) return false;
    }
    return true;
  };
  const auto lengths = std::views::iota(1, pages_for(need.context_tokens) + 1);
  const auto first_too_long = std::ranges::partition_point(lengths, fits);
  return std::int64_t{first_too_long - lengths.begin()} * kPageTokens;
}

std::int64_t workspace_of(const DeviceNeed& need, const DevicePlan::Device& device) {
  return device.num_layers > 0 ? need.workspace_bytes : need.experts_bytes;
}

// That the plan's device does not hold its layers.
Attempt::Refusal over_budget(const DeviceNeed& need, const DevicePlan& plan, const Shares& shares,
                             const DeviceRoom& room, std::size_t index) {
  const DevicePlan::Device& device = plan.devices[index];
  return {
      index,
      fmt::format("its {} and buffers need {:.2f} GiB, it may take {:.2f}",
                  layers_in_words(device.num_layers), gib(device.fixed_bytes),
                  gib(device.budget_bytes)),
      fmt::format(
          "device {} (GPU {}) may take {:.2f} GiB; its {} need {:.2f} for weights, "
          "{:.2f} for {} tokens of context, {:.2f} for activations and {:.2f} for scratch: give "
          "it at least {} bytes ({:.2f} GiB, --vram), use more devices (--devices){} or lower "
          "--prefill-rows",
          index, device.gpu, gib(device.budget_bytes), layers_in_words(device.num_layers),
          gib(shares.weights[index]), gib(shares.kv[index]), need.context_tokens,
          gib(workspace_of(need, device)), gib(room.scratch_bytes), device.fixed_bytes,
          gib(device.fixed_bytes),
          shorter_context(context_that_fits(need, plan, shares), need.context_flag))};
}

Attempt try_plan(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                 std::int64_t vram_bytes) {
  Attempt attempt;
  DevicePlan& plan = attempt.plan;
  // 1. Budgets.
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    const DeviceRoom& room = rooms[i];
    const int num_sharing = devices_on(rooms, room.gpu);
    const std::int64_t share = room.free_bytes / num_sharing;
    plan.devices.push_back(
        {.gpu = room.gpu, .budget_bytes = vram_bytes > 0 ? vram_bytes : share - share / 16});
    if (vram_bytes <= share) continue;
    attempt.refusal = {
        i, fmt::format("it has {:.2f} GiB free, --vram is {:.2f}", gib(share), gib(vram_bytes)),
        fmt::format("--vram {:.2f} GiB: GPU {} has {:.2f} GiB free for each of its {} device(s); "
                    "free some or give it less",
                    gib(vram_bytes), room.gpu, gib(share), num_sharing),
        /*more_than_free=*/true};
    return attempt;
  }
  // 2. Layers.
  plan.layer_device = share_layers(static_cast<int>(need.weight_bytes.size()), plan.devices);
  for (const int device : plan.layer_device) {
    ++plan.devices[static_cast<std::size_t>(device)].num_layers;
  }
  const Shares shares = shares_of(need, plan, pages_for(need.context_tokens));
  // 3. Do the devices hold them? The smallest that does not is the first to go; of several as small
  // the one that lacks most, so that --vram with what it asks for is enough for all.
  std::optional<std::size_t> failing;
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    DevicePlan::Device& device = plan.devices[i];
    device.fixed_bytes =
        shares.weights[i] + shares.kv[i] + workspace_of(need, device) + rooms[i].scratch_bytes;
    if (device.fixed_bytes <= device.budget_bytes) continue;
    const auto lacks_more = [&](const DevicePlan::Device& other) {
      return device.budget_bytes != other.budget_bytes ? device.budget_bytes < other.budget_bytes
                                                       : device.fixed_bytes > other.fixed_bytes;
    };
    if (!failing || lacks_more(plan.devices[*failing])) failing = i;
  }
  if (failing) {
    attempt.refusal = over_budget(need, plan, shares, rooms[*failing], *failing);
    return attempt;
  }
  // 4. What is left holds experts, of any layer.
  const std::int64_t num_experts =
      std::reduce(need.num_experts.begin(), need.num_experts.end(), std::int64_t{0});
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    DevicePlan::Device& device = plan.devices[i];
    if (need.slot_bytes == 0) continue;
    const std::int64_t slots = (device.budget_bytes - device.fixed_bytes) / need.slot_bytes;
    device.num_slots = static_cast<int>(std::min(slots, num_experts));
  }
  return attempt;
}

void check_need(const DeviceNeed& need, std::span<const DeviceRoom> rooms) {
  const auto num_layers = need.weight_bytes.size();
  CHECK(!rooms.empty() && num_layers > 0 && need.kv_page_bytes.size() == num_layers &&
            need.num_experts.size() == num_layers,
        "{} devices, layers {}, {}, {}", rooms.size(), num_layers, need.kv_page_bytes.size(),
        need.num_experts.size());
}

// Their layers stay where they are.
void leave_out_idle(DeviceChoice& choice) {
  DevicePlan& plan = choice.plan;
  for (std::size_t i = plan.devices.size(); i-- > 0;) {
    if (plan.devices[i].num_layers > 0) continue;
    choice.left_out.push_back({plan.devices[i].gpu, "its share is less than a layer"});
    plan.devices.erase(plan.devices.begin() + static_cast<std::ptrdiff_t>(i));
    for (int& device : plan.layer_device) device -= device > static_cast<int>(i) ? 1 : 0;
  }
}

}  // namespace

std::int64_t device_allocation_bytes(std::int64_t bytes) {
  constexpr std::int64_t kPiece = 512, kBlock = 2 << 20;
  const std::int64_t pieces = (bytes + kPiece - 1) / kPiece * kPiece;
  if (pieces > kBlock / 2) return (pieces + kBlock - 1) / kBlock * kBlock;
  return pieces > kBlock / 4 ? kBlock / 2 : pieces;
}

Result<DeviceChoice> choose_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                    std::int64_t vram_bytes) {
  check_need(need, rooms);
  std::vector<DeviceRoom> left(rooms.begin(), rooms.end());
  DeviceChoice choice;
  std::optional<Attempt::Refusal> first;  // of all devices, or of those that have --vram free
  for (;;) {
    Attempt attempt = try_plan(need, left, vram_bytes);
    if (!attempt.refusal) {
      choice.plan = std::move(attempt.plan);
      leave_out_idle(choice);
      return choice;
    }
    const Attempt::Refusal& refusal = *attempt.refusal;
    if (!first || first->more_than_free) first = refusal;
    if (left.size() == 1) return Error(ErrorCode::kResource, std::move(first->message));
    choice.left_out.push_back({left[refusal.device].gpu, refusal.why});
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(refusal.device));
  }
}

Result<DevicePlan> plan_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                std::int64_t vram_bytes) {
  check_need(need, rooms);
  Attempt attempt = try_plan(need, rooms, vram_bytes);
  if (!attempt.refusal) return std::move(attempt.plan);
  std::string message = std::move(attempt.refusal->message);
  // Would some of them do?
  if (const Result<DeviceChoice> some = choose_devices(need, rooms, vram_bytes); some.ok()) {
    std::vector<int> in, out;
    for (const DevicePlan::Device& device : some->plan.devices) in.push_back(device.gpu);
    for (const LeftOut& device : some->left_out) out.push_back(device.gpu);
    message += fmt::format("; without a device on GPU {} it fits: --devices {}",
                           fmt::join(out, ", "), fmt::join(in, ","));
  }
  return Error(ErrorCode::kResource, std::move(message));
}

}  // namespace stoker::tools
