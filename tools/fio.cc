#include "tools/fio.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>

namespace stoker::tools {
namespace {

// fio takes several files separated by colons.
std::string file_list(const std::vector<std::filesystem::path>& files) {
  std::string list;
  for (const std::filesystem::path& file : files) {
    if (!list.empty()) list += ':';
    for (const char c : file.string()) {
      if (c == ':' || c == '\\') list += '\\';
      list += c;
    }
  }
  return list;
}

struct Pipe {
  std::array<int, 2> ends{-1, -1};
  ~Pipe() {
    for (const int end : ends) {
      if (end >= 0) ::close(end);
    }
  }
  void close_end(int which) { ::close(std::exchange(ends[static_cast<std::size_t>(which)], -1)); }
};

// Runs a program and returns what it writes to standard output.
Result<std::string> output_of(std::vector<std::string> arguments) {
  Pipe pipe;
  if (::pipe2(pipe.ends.data(), O_CLOEXEC) != 0) {
    return make_error(ErrorCode::kResource, "no pipe to {}", arguments[0]);
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe.ends[1], STDOUT_FILENO);
  std::vector<char*> raw;
  raw.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) raw.push_back(argument.data());
  raw.push_back(nullptr);
  pid_t child = 0;
  const int code = ::posix_spawnp(&child, raw[0], &actions, nullptr, raw.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) {
    return make_error(code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, "cannot start {}: {}",
                      arguments[0], std::generic_category().message(code));
  }
  pipe.close_end(1);
  std::string text;
  std::array<char, 65536> some;
  for (ssize_t got = 0; (got = ::read(pipe.ends[0], some.data(), some.size())) != 0;) {
    if (got > 0) text.append(some.data(), static_cast<std::size_t>(got));
    if (got < 0 && errno != EINTR) break;
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return make_error(ErrorCode::kIo, "{} failed (its messages stand above)", arguments[0]);
  }
  return text;
}

}  // namespace

Result<FioResult> run_fio(const FioJob& job) {
  ASSIGN_OR_RETURN(
      const std::string text,
      output_of({"fio", "--name=reads", "--filename=" + file_list(job.files), "--rw=randread",
                 fmt::format("--bs={}", job.block_bytes), "--direct=1", "--ioengine=io_uring",
                 "--fixedbufs=1", "--registerfiles=1", fmt::format("--iodepth={}", job.depth),
                 "--time_based", fmt::format("--runtime={}ms", static_cast<int>(job.seconds * 1e3)),
                 "--norandommap", "--randrepeat=0", "--invalidate=0", "--output-format=json"}));
  // Notes of fio may stand before the object.
  const std::size_t begin = text.find('{');
  const auto parsed = nlohmann::json::parse(begin == std::string::npos ? "" : text.substr(begin),
                                            nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains("jobs") || parsed["jobs"].empty()) {
    return make_error(ErrorCode::kIo, "fio wrote no result that can be read");
  }
  const nlohmann::json& result = parsed["jobs"][0];
  const nlohmann::json& read = result.value("read", nlohmann::json::object());
  FioResult rate;
  rate.bytes_per_second = read.value("bw_bytes", 0.0);
  const double cpus = (result.value("usr_cpu", 0.0) + result.value("sys_cpu", 0.0)) / 100.0;
  if (rate.bytes_per_second > 0.0) rate.cpu_seconds_per_gb = cpus * 1e9 / rate.bytes_per_second;
  return rate;
}

}  // namespace stoker::tools
