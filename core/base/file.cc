#include "core/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/descriptor.h"

namespace stoker {

Result<std::string> read_small_file(const std::filesystem::path& path, std::size_t max_bytes) {
  const Descriptor file = open_file(path, O_RDONLY);
  if (!file.is_open()) return system_error(path, "cannot open");
  ASSIGN_OR_RETURN(const std::int64_t size, regular_file_size(file, path));
  if (static_cast<std::size_t>(size) > max_bytes) {
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes are too many, at most {}",
                      path.string(), size, max_bytes);
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error(path, "cannot read");
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

}  // namespace stoker
