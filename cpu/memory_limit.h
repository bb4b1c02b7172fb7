// What a container or a batch system leaves this process of the machine's memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace stoker {

// Bytes that the control groups of this process still allow it to take: the least over its group
// and those above, pages of files that would be given back counted as free. Empty without a limit.
// Versions 1 and 2: https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroup-v1/memory.html.
// `membership` is a /proc/PID/cgroup, `mount` where the groups are mounted.
std::optional<std::int64_t> memory_left_to_process(
    const std::string& membership = "/proc/self/cgroup",
    const std::string& mount = "/sys/fs/cgroup");

}  // namespace stoker
