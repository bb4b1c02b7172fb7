#include "core/base/descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <system_error>

namespace stoker {

Descriptor::~Descriptor() {
  if (is_open()) ::close(fd_);
}

int Descriptor::close() { return ::close(std::exchange(fd_, -1)); }

Error system_error(const std::filesystem::path& path, std::string_view doing, int code) {
  const ErrorCode kind = code == ENOENT                                      ? ErrorCode::kNotFound
                         : code == ENOSPC || code == EDQUOT || code == EFBIG ? ErrorCode::kResource
                                                                             : ErrorCode::kIo;
  return make_error(kind, "{}: {}: {}", path.string(), doing,
                    std::generic_category().message(code));
}

Descriptor open_file(const std::filesystem::path& path, int flags) {
  constexpr int kCreatedMode = 0644;
  return Descriptor(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, kCreatedMode));
}

Result<std::int64_t> regular_file_size(const Descriptor& file, const std::filesystem::path& path) {
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return system_error(path, "cannot stat");
  if (!S_ISREG(info.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument, "{}: is not a regular file", path.string());
  }
  return info.st_size;
}

}  // namespace stoker
