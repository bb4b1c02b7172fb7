// What goes onto which GPU, decided before anything is loaded.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/runtime/kv_pool.h"
#include "tools/shorter_context.h"

namespace stoker::tools {

// What an allocation takes of a GPU, as seen on an H200: of more than 1 MiB whole blocks of 2 MiB;
// of smaller ones several share a block, two if they are larger than a quarter of it.
std::int64_t device_allocation_bytes(std::int64_t bytes);

// What a model takes of devices. Bytes.
struct DeviceNeed {
  std::vector<std::int64_t> weight_bytes;  // of every main layer, but its routed experts
  // Of every main layer: what a page of each stream takes, which is allocated for all pages at
  // once.
  std::vector<std::array<std::int64_t, kNumKvStreams>> kv_page_bytes;
  std::int64_t head_bytes = 0;       // with the last layer
  std::int64_t workspace_bytes = 0;  // activations of a device that runs layers
  std::int64_t experts_bytes = 0;    // of one that computes experts alone
  int context_tokens = 0;
  ContextFlag context_flag;
  std::int64_t slot_bytes = 0;   // of the largest expert; 0: the model has none
  std::vector<int> num_experts;  // routed experts of every main layer
};

// A device in use. The same GPU may be there several times.
struct DeviceRoom {
  int gpu = 0;                     // index into list_gpus()
  std::int64_t free_bytes = 0;     // of the GPU
  std::int64_t scratch_bytes = 0;  // that its backend takes for itself
};

struct DevicePlan {
  struct Device {
    int gpu = 0;
    int num_layers = 0;
    std::int64_t budget_bytes = 0;  // all that it may take
    std::int64_t fixed_bytes = 0;   // weights, caches, activations, scratch
    int num_slots = 0;              // of experts
  };
  std::vector<Device> devices;
  std::vector<int> layer_device;  // index into `devices`, by main layer; ascending
};

// Layers go to the devices in order, to each as many as agree with its share of all budgets; what a
// device has left holds experts, of any layer. The budget of a device is `vram_bytes`
// (--vram), or without it (0) what the GPU has free, its devices sharing it, less a sixteenth.
// Refused, with the numbers: a budget that does not hold what its layers need, and more than a GPU
// has free; with a budget and a context that would fit, if there are such; and if fewer of the
// devices would do, it is said which.
Result<DevicePlan> plan_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                std::int64_t vram_bytes);

struct LeftOut {
  int gpu = 0;
  std::string why;
};
struct DeviceChoice {
  DevicePlan plan;  // of the rest
  std::vector<LeftOut> left_out;
};

// The same for devices that nobody asked for: one that such a plan fails for is left out, and so is
// one that no layer falls to. Refused if none is left, with what is in the way of the model.
Result<DeviceChoice> choose_devices(const DeviceNeed& need, std::span<const DeviceRoom> rooms,
                                    std::int64_t vram_bytes);

}  // namespace stoker::tools
