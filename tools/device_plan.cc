#include "tools/device_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <ranges>
#include <utility>

#include "gpu/factory.h"

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

// What a device may take of its GPU at most.
std::int64_t share_of_gpu(std::span<const DeviceRoom> rooms, std::size_t index) {
  return rooms[index].free_bytes / devices_on(rooms, rooms[index].gpu);
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

// A plan, or which device it fails for; the plan goes as far as that.
struct Attempt {
  enum class Failure : std::uint8_t { kNone, kMoreThanFree, kOverBudget };
  DevicePlan plan;
  Failure failure = Failure::kNone;
  std::size_t device = 0;

  bool ok() const { return failure == Failure::kNone; }
  const DevicePlan::Device& failing() const { return plan.devices[device]; }
  // It says something of the device and nothing of the model.
  bool is_of_device() const {
    return failure == Failure::kMoreThanFree || failing().num_layers == 0;
  }
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

// Which of two devices that do not hold their share goes first: the smaller; of two as small the
// one that needs more, so that it is enough for both to be given that.
bool goes_before(const DevicePlan::Device& a, const DevicePlan::Device& b) {
  return a.budget_bytes != b.budget_bytes ? a.budget_bytes < b.budget_bytes
                                          : a.fixed_bytes > b.fixed_bytes;
}

// Slots that the allocation for them, in so many bytes, holds.
int slots_in(std::int64_t bytes, std::int64_t slot_bytes, std::int64_t most) {
  std::int64_t count = std::min(bytes / slot_bytes, most);
  while (count > 0 && device_allocation_bytes(cuda_slots_bytes(count, slot_bytes)) > bytes) --count;
  return static_cast<int>(count);
}

Attempt try_plan(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                 std::int64_t vram_bytes) {
  Attempt attempt;
  DevicePlan& plan = attempt.plan;
  // 1. Budgets.
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    const std::int64_t share = share_of_gpu(rooms, i);
    plan.devices.push_back(
        {.gpu = rooms[i].gpu, .budget_bytes = vram_bytes > 0 ? vram_bytes : share - share / 16});
    if (vram_bytes <= share) continue;
    attempt.failure = Attempt::Failure::kMoreThanFree;
    attempt.device = i;
    return attempt;
  }
  // 2. Layers.
  plan.layer_device = share_layers(static_cast<int>(need.weight_bytes.size()), plan.devices);
  for (const int device : plan.layer_device) {
    ++plan.devices[static_cast<std::size_t>(device)].num_layers;
  }
  // 3. Do the devices hold them?
  const Shares shares = shares_of(need, plan, pages_for(need.context_tokens));
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    DevicePlan::Device& device = plan.devices[i];
    device.fixed_bytes =
        shares.weights[i] + shares.kv[i] + workspace_of(need, device) + rooms[i].scratch_bytes;
    if (device.fixed_bytes <= device.budget_bytes) continue;
    if (attempt.ok() || goes_before(device, attempt.failing())) attempt.device = i;
    attempt.failure = Attempt::Failure::kOverBudget;
  }
  if (!attempt.ok() || need.slot_bytes == 0) return attempt;
  // 4. What is left holds experts, of any layer.
  const std::int64_t num_experts =
      std::reduce(need.num_experts.begin(), need.num_experts.end(), std::int64_t{0});
  for (DevicePlan::Device& device : plan.devices) {
    device.num_slots =
        slots_in(device.budget_bytes - device.fixed_bytes, need.slot_bytes, num_experts);
  }
  return attempt;
}

// --vram with which such a plan fits, found from what the failing device needs; 0: no such thing,
// the GPUs have less.
std::int64_t enough_vram(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                         const Attempt& attempt) {
  constexpr int kMostTries = 4;  // with equal budgets layers stay where they are
  std::int64_t bytes = attempt.failing().fixed_bytes;
  for (int i = 0; i < kMostTries; ++i) {
    const Attempt next = try_plan(need, rooms, bytes);
    if (next.ok()) return bytes;
    if (next.failure == Attempt::Failure::kMoreThanFree) return 0;
    bytes = next.failing().fixed_bytes;
  }
  return 0;
}

// Why a device is left out, in a few words.
std::string why_not(std::span<const DeviceRoom> rooms, const Attempt& attempt,
                    std::int64_t vram_bytes) {
  const DevicePlan::Device& device = attempt.failing();
  if (attempt.failure == Attempt::Failure::kMoreThanFree) {
    return fmt::format("it has {:.2f} GiB free, --vram is {:.2f}",
                       gib(share_of_gpu(rooms, attempt.device)), gib(vram_bytes));
  }
  return fmt::format("its {} and buffers need {:.2f} GiB, it may take {:.2f}",
                     layers_in_words(device.num_layers), gib(device.fixed_bytes),
                     gib(device.budget_bytes));
}

// The same with all the numbers, and what could be done.
std::string refusal_of(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                       const Attempt& attempt, std::int64_t vram_bytes) {
  const std::size_t index = attempt.device;
  const DevicePlan::Device& device = attempt.failing();
  if (attempt.failure == Attempt::Failure::kMoreThanFree) {
    return fmt::format(
        "--vram {:.2f} GiB: GPU {} has {:.2f} GiB free for each of its {} device(s); free some or "
        "give it less",
        gib(vram_bytes), device.gpu, gib(share_of_gpu(rooms, index)),
        devices_on(rooms, device.gpu));
  }
  const Shares shares = shares_of(need, attempt.plan, pages_for(need.context_tokens));
  const std::int64_t enough = enough_vram(need, rooms, attempt);
  return fmt::format(
      "device {} (GPU {}) may take {:.2f} GiB; its {} need {:.2f} for weights, {:.2f} for {} "
      "tokens of context, {:.2f} for activations and {:.2f} for scratch: {}use more devices "
      "(--devices){} or lower --prefill-rows",
      index, device.gpu, gib(device.budget_bytes), layers_in_words(device.num_layers),
      gib(shares.weights[index]), gib(shares.kv[index]), need.context_tokens,
      gib(workspace_of(need, device)), gib(rooms[index].scratch_bytes),
      enough == 0
          ? ""
          : fmt::format("give it at least {} bytes ({:.2f} GiB, --vram), ", enough, gib(enough)),
      shorter_context(context_that_fits(need, attempt.plan, shares), need.context_flag));
}

void check_need(const DeviceNeed& need, std::span<const DeviceRoom> rooms) {
  const auto num_layers = need.weight_bytes.size();
  CHECK(!rooms.empty() && num_layers > 0 && need.kv_page_bytes.size() == num_layers &&
            need.num_experts.size() == num_layers,
        "{} devices, layers {}, {}, {}", rooms.size(), num_layers, need.kv_page_bytes.size(),
        need.num_experts.size());
}

// The devices with which there is a plan, once those that one fails for are left out.
Result<DeviceChoice> leave_out_failing(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                       std::int64_t vram_bytes) {
  std::vector<DeviceRoom> left(rooms.begin(), rooms.end());
  DeviceChoice choice;
  // What is said if none is left: the first that is in the way of the model, or else of a device.
  std::string message;
  bool is_of_device = true;
  for (;;) {
    Attempt attempt = try_plan(need, left, vram_bytes);
    if (attempt.ok()) {
      choice.plan = std::move(attempt.plan);
      return choice;
    }
    if (message.empty() || (is_of_device && !attempt.is_of_device())) {
      message = refusal_of(need, left, attempt, vram_bytes);
      is_of_device = attempt.is_of_device();
    }
    if (left.size() == 1) return Error(ErrorCode::kResource, std::move(message));
    choice.left_out.push_back({attempt.failing().gpu, why_not(left, attempt, vram_bytes)});
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(attempt.device));
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
  ASSIGN_OR_RETURN(DeviceChoice choice, leave_out_failing(need, rooms, vram_bytes));
  // Without those that no layer falls to. Layers stay where they are.
  DevicePlan& plan = choice.plan;
  for (std::size_t i = plan.devices.size(); i-- > 0;) {
    if (plan.devices[i].num_layers > 0) continue;
    choice.left_out.push_back({plan.devices[i].gpu, "its share is less than a layer"});
    plan.devices.erase(plan.devices.begin() + static_cast<std::ptrdiff_t>(i));
    for (int& device : plan.layer_device) device -= device > static_cast<int>(i) ? 1 : 0;
  }
  return choice;
}

Result<DevicePlan> plan_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                std::int64_t vram_bytes) {
  check_need(need, rooms);
  Attempt attempt = try_plan(need, rooms, vram_bytes);
  if (attempt.ok()) return std::move(attempt.plan);
  std::string message = refusal_of(need, rooms, attempt, vram_bytes);
  // Would some of them do?
  if (const Result<DeviceChoice> some = leave_out_failing(need, rooms, vram_bytes); some.ok()) {
    std::vector<int> in, out;
    for (const DevicePlan::Device& device : some->plan.devices) in.push_back(device.gpu);
    for (const LeftOut& device : some->left_out) out.push_back(device.gpu);
    message += fmt::format("; without a device on GPU {} it fits: --devices {}",
                           fmt::join(out, ", "), fmt::join(in, ","));
  }
  return Error(ErrorCode::kResource, std::move(message));
}

}  // namespace stoker::tools
