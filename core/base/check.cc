#include "core/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace stoker::check_internal {

void fail(const char* file, int line, const char* condition, const std::string& values) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s%s\n", file, line, condition,
               values.empty() ? "" : ": ", values.c_str());
  std::abort();
}

}  // namespace stoker::check_internal
