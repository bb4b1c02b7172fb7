#include "tools/inspect_machine.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "tools/inspect_model.h"
#include "tools/json_object.h"

namespace stoker::tools {
namespace {

std::vector<std::string_view> isa_names(const std::vector<Isa>& isas) {
  std::vector<std::string_view> names;
  for (const Isa isa : isas) names.push_back(isa_name(isa));
  return names;
}

JsonValue gpus_to_json(const std::vector<GpuInfo>& gpus) {
  JsonArray array;
  for (std::size_t index = 0; index < gpus.size(); ++index) {
    const GpuInfo& gpu = gpus[index];
    const Status usable = gpu.usable();
    JsonObject object;
    object.add("index", static_cast<std::int64_t>(index)).add("name", gpu.name);
    if (gpu.fault.empty()) {
      object.add("bus_id", gpu.bus_id)
          .add("total_bytes", gpu.total_bytes)
          .add("compute_capability", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor))
          .add("multiprocessors", gpu.num_multiprocessors);
    }
    object.add("usable", usable.ok());
    if (!usable.ok()) object.add("why_not", usable.error().message());
    array.push_back(std::move(object).build());
  }
  return JsonValue(std::move(array));
}

std::string gpu_in_words(const GpuInfo& gpu) {
  if (!gpu.fault.empty()) return fmt::format("{}; not usable: {}", gpu.name, gpu.fault);
  const Status usable = gpu.usable();
  return fmt::format("{}, {}, compute capability {}.{}, {} SMs, {}{}", gpu.name,
                     human_bytes(gpu.total_bytes), gpu.compute_major, gpu.compute_minor,
                     gpu.num_multiprocessors, gpu.bus_id,
                     usable.ok() ? "" : "; not usable: " + usable.error().message());
}

JsonValue drive_to_json(const BlockDrive& drive) {
  JsonObject object;
  object.add("name", drive.name)
      .add("model", drive.model)
      .add("bytes", drive.bytes)
      .add("rotational", drive.rotational);
  return std::move(object).build();
}

JsonValue cache_to_json(const CacheInfo& cache) {
  JsonObject object;
  object.add("level", cache.level).add("bytes", cache.bytes).add("count", cache.count);
  return std::move(object).build();
}

JsonValue node_to_json(const NumaNode& node) {
  JsonObject object;
  object.add("node", node.os_index)
      .add("memory_bytes", node.memory_bytes)
      .add("cpus", json_array(node.cpus));
  return std::move(object).build();
}

template <typename T>
JsonValue list(const std::vector<T>& values, JsonValue (*to_json)(const T&)) {
  JsonArray array;
  for (const T& value : values) array.push_back(to_json(value));
  return JsonValue(std::move(array));
}

}  // namespace

MachineReport inspect_machine() { return {MachineInfo::detect(), list_gpus(), cuda_support()}; }

JsonValue machine_to_json(const MachineReport& report) {
  const MachineInfo& cpu = report.cpu;
  JsonObject object;
  object.add("cpu", cpu.cpu_model)
      .add("packages", cpu.topology.num_packages)
      .add("cores", cpu.topology.num_cores)
      .add("cpus", json_array(cpu.topology.cpus))
      .add("caches", list(cpu.topology.caches, cache_to_json))
      .add("numa_nodes", list(cpu.topology.numa_nodes, node_to_json))
      .add("memory_bytes", cpu.memory_bytes)
      .add("memory_available_bytes", cpu.memory_available_bytes)
      .add("isas", json_array(isa_names(cpu.isas)))
      .add("isa_chosen", isa_name(cpu.chosen))
      .add("gpus", gpus_to_json(report.gpus))
      .add("cuda", report.cuda)
      .add("drives", list(cpu.drives, drive_to_json));
  return std::move(object).build();
}

std::string machine_to_text(const MachineReport& report) {
  const MachineInfo& cpu = report.cpu;
  const Topology& topology = cpu.topology;
  std::string text;
  auto out = std::back_inserter(text);
  fmt::format_to(out, "processor     {}\n", cpu.cpu_model.empty() ? "unknown" : cpu.cpu_model);
  fmt::format_to(out, "cores         {} in {} packages, {} logical CPUs\n", topology.num_cores,
                 topology.num_packages, topology.cpus.size());
  for (const CacheInfo& cache : topology.caches) {
    fmt::format_to(out, "cache L{}      {} x {}\n", cache.level, cache.count,
                   human_bytes(cache.bytes));
  }
  for (const NumaNode& node : topology.numa_nodes) {
    fmt::format_to(out, "NUMA node {:<3} {}, {} logical CPUs\n", node.os_index,
                   human_bytes(node.memory_bytes), node.cpus.size());
  }
  fmt::format_to(out, "memory        {}, {} available\n", human_bytes(cpu.memory_bytes),
                 human_bytes(cpu.memory_available_bytes));
  fmt::format_to(out, "instructions  {}; chosen: {}\n", fmt::join(isa_names(cpu.isas), ", "),
                 isa_name(cpu.chosen));
  for (std::size_t index = 0; index < report.gpus.size(); ++index) {
    const GpuInfo& gpu = report.gpus[index];
    fmt::format_to(out, "GPU {:<9} {}\n", index, gpu_in_words(gpu));
  }
  if (report.gpus.empty()) text += "GPU           none\n";
  fmt::format_to(out, "CUDA          {}\n", report.cuda);
  for (const BlockDrive& drive : cpu.drives) {
    fmt::format_to(out, "drive         {}, {}, {}{}\n", drive.name, human_bytes(drive.bytes),
                   drive.rotational ? "rotating" : "solid state",
                   drive.model.empty() ? "" : ", " + drive.model);
  }
  if (cpu.drives.empty()) text += "drive         none that can be seen\n";
  return text;
}

}  // namespace stoker::tools
