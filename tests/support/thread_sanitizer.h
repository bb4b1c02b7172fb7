// Long tests of one thread have nothing to show ThreadSanitizer and take ten times as long there.
#pragma once

namespace stoker::test {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

}  // namespace stoker::test

#define SKIP_UNDER_THREAD_SANITIZER()                                                   \
  do {                                                                                  \
    if (::stoker::test::kThreadSanitizer) GTEST_SKIP() << "one thread: nothing to see"; \
  } while (false)
