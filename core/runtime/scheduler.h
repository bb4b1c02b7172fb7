// Scheduler: on which processor each expert of a layer is computed, so that the last one is done as
// early as possible. A pure function of what is known when a layer is demanded; it moves nothing.
//
// The machine it sees: a host that computes experts whose bytes are in RAM, one after another; and
// devices, each of which computes what lies in its memory, one after another, while its copy engine
// brings experts from RAM, one after another. A device may compute while it copies; an expert is
// computed once all of it has been copied.
//
// An expert that is in RAM or on its way there may be computed by the host, or copied to any device
// that has room; one that a device holds may be computed there without a copy. An expert that a
// device holds and that nobody reads into RAM is computed by a device that holds it: a schedule
// never causes a read from a drive.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>

namespace stoker {

inline constexpr double kNotInRam = std::numeric_limits<double>::infinity();
inline constexpr int kMaxScheduledDevices = 16;

// Time to compute one expert: `expert_us` + rows * `row_us`.
struct ComputeCost {
  double expert_us = 0.0;
  double row_us = 0.0;
  double of(int num_rows) const { return expert_us + num_rows * row_us; }
};

struct ScheduledExpert {
  int num_rows = 1;
  // When all its bytes are in RAM, from now: 0: they are; kNotInRam: they are not and nobody reads
  // them.
  double in_ram_us = 0.0;
  std::uint32_t held_by = 0;  // bit d: device d holds it; bits of no device mean nothing

  bool held(int device) const { return (held_by >> device & 1U) != 0; }
};

struct ScheduledHost {
  bool computes = true;  // false: it only keeps bytes
  double busy_us = 0.0;  // until it can begin
  ComputeCost cost;
};

struct ScheduledDevice {
  double busy_us = 0.0;       // until it can compute experts
  double copy_busy_us = 0.0;  // until its copy engine can begin
  int num_free_slots = 0;     // experts that can be copied to it
  ComputeCost cost;
  double upload_us = 0.0;  // to copy one expert from RAM
};

// Where an expert is computed: on the host, or on a device.
struct ExpertSite {
  static constexpr int kOnHost = -1;
  int device = kOnHost;
  bool upload = false;  // it is copied to the device, which does not hold it
  bool operator==(const ExpertSite&) const = default;
};

// Not thread-safe: it keeps scratch memory, and nothing else, between calls.
class Scheduler {
 public:
  // Reserves for layers of up to `max_experts` experts; assign() allocates nothing.
  explicit Scheduler(int max_experts);
  ~Scheduler();

  // Writes one site per expert into `sites` and returns their makespan_us(). It is the least
  // possible one for up to ten experts and one device, and nearly so for more: the search is
  // bounded, in steps rather than by a clock, so that the same input gives the same sites. Requires
  // finite times that are not negative, but for kNotInRam.
  //
  // Nobody may compute an expert that is not in RAM and that no device holds; nor, where the host
  // does not compute, those that are too many for the free slots: the last ones to be in RAM, of
  // equal ones those of higher index. Such an expert is given to the host, which has a way of last
  // resort for it; the makespan is that of the others.
  double assign(std::span<const ScheduledExpert> experts, const ScheduledHost& host,
                std::span<const ScheduledDevice> devices, std::span<ExpertSite> sites);

 private:
  class Search;
  std::unique_ptr<Search> search_;
};

// The makespan of given sites. Every processor and copy engine takes its experts in order of
// `in_ram_us`, then index; a device takes those that it holds first. Experts on a host that may not
// compute them (see assign()) are left out; a schedule of nothing takes 0.
double makespan_us(std::span<const ScheduledExpert> experts, const ScheduledHost& host,
                   std::span<const ScheduledDevice> devices, std::span<const ExpertSite> sites);

}  // namespace stoker
