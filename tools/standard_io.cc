#include "tools/standard_io.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>

namespace stoker::tools {
namespace {

constexpr std::size_t kMaxInputBytes = std::size_t{64} << 20;

}  // namespace

Status write_output(std::string_view text) {
  const bool done =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (done) return {};
  const int error = errno;
  if (error == EPIPE) return Error(ErrorCode::kCancelled, "standard output was closed");
  return make_error(ErrorCode::kIo, "cannot write to standard output: {}",
                    std::generic_category().message(error));
}

bool read_line(std::istream& input, std::string& line) {
  if (!std::getline(input, line)) return false;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

Result<std::string> read_input(const std::string& path) {
  const bool from_stdin = path == "-";
  const std::string name = from_stdin ? "standard input" : path;
  std::error_code ignored;
  if (!from_stdin && std::filesystem::is_directory(path, ignored)) {
    return make_error(ErrorCode::kInvalidArgument, "{} is a directory, not a file", path);
  }
  std::ifstream file;  // not only regular files: pipes are welcome
  if (!from_stdin) {
    file.open(path, std::ios::binary);
    if (!file) {
      return make_error(ErrorCode::kNotFound, "cannot open {}: {}", path,
                        std::generic_category().message(errno));
    }
  }
  std::istream& input = from_stdin ? std::cin : file;
  std::string text;
  std::array<char, 65536> buffer{};
  while (input.read(buffer.data(), buffer.size()), input.gcount() > 0) {
    text.append(buffer.data(), static_cast<std::size_t>(input.gcount()));
    if (text.size() > kMaxInputBytes) {
      return make_error(ErrorCode::kResource, "{}: more than {} bytes", name, kMaxInputBytes);
    }
  }
  if (input.bad()) return make_error(ErrorCode::kIo, "cannot read {}", name);
  return text;
}

std::string without_controls(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c0 = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    // U+0080 .. U+009F, which some terminals obey as well.
    const bool c1 = byte == 0xc2 && i + 1 < text.size() &&
                    static_cast<unsigned char>(text[i + 1]) >= 0x80 &&
                    static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (c1) ++i;
    if (!c0 && !c1) out.push_back(text[i]);
  }
  return out;
}

}  // namespace stoker::tools
