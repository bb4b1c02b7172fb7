// Speed, as promises that a slow machine keeps too: growth, and figures far below what is measured.
// Each case prints one line: case, time, bytes, MB/s.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "core/text/tokenizer.h"

namespace stoker {
namespace {

// The promises below are for optimised code; elsewhere only what holds for growth is checked.
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
constexpr bool kIsFast = true;
#else
constexpr bool kIsFast = false;
#endif

// Of this thread's processor time: the machine may be busy with other things.
double seconds(const std::function<void()>& work) {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double begin = now();
  work();
  return now() - begin;
}

double best_seconds(int num_runs, const std::function<void()>& work) {
  double best = seconds(work);
  for (int i = 1; i < num_runs; ++i) best = std::min(best, seconds(work));
  return best;
}

void report(const std::string& name, double time, std::size_t num_bytes) {
  fmt::print("{:<24} {:>9.2f} ms {:>10} B {:>8.2f} MB/s\n", name, time * 1e3, num_bytes,
             static_cast<double>(num_bytes) / time / 1e6);
}

void append_utf8(char32_t c, std::string* out) {  // three-byte code points
  out->push_back(static_cast<char>(0xE0 | c >> 12));
  out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
  out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
}

// Words from a made-up language of English letters and word lengths, so that nothing repeats
// exactly.
std::string prose(std::size_t num_bytes) {
  static constexpr const char* kWords[] = {
      "the",     "of",   "expert", "memory", "router",      "token",    "a",        "is",
      "waiting", "for",  "disk",   "and",    "bandwidth",   "measures", "every",    "layer",
      "because", "it",   "has",    "been",   "running",     "quickly",  "although", "nobody",
      "noticed", "that", "in",     "time",   "prefetching", "helps",    "sometimes"};
  static constexpr const char* kSyllables[] = {"ta",   "ren", "lo",  "mi",
                                               "ster", "ing", "qua", "ble"};
  std::mt19937 random(3);
  std::string text;
  while (text.size() < num_bytes) {
    if (random() % 8 == 0) {
      for (std::size_t i = 0; i < 2 + random() % 3; ++i) text += kSyllables[random() % 8];
    } else {
      text += kWords[random() % std::size(kWords)];
    }
    if (random() % 50 == 0) text += fmt::format(" {}", random() % 10000);
    text += random() % 12 == 0 ? ", " : random() % 80 == 0 ? ".\n" : " ";
  }
  text.resize(num_bytes);
  return text;
}

class TokenizerHeavyTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::filesystem::path shared = STOKER_SHARED_DIR;
    file_ = (shared / "tokenizer/tokenizer.json").string();
    if (shared.empty() || !std::filesystem::exists(file_)) {
      GTEST_SKIP() << "STOKER_SHARED_DIR is not set, or has no tokenizer/tokenizer.json";
    }
  }

  std::string file_;
};

TEST_F(TokenizerHeavyTest, LoadsFast) {
  const double time = best_seconds(3, [&] { ASSERT_TRUE(Tokenizer::load(file_).ok()); });
  report("load", time, std::filesystem::file_size(file_));
  EXPECT_LT(time, kIsFast ? 0.3 : 30.0);
}

TEST_F(TokenizerHeavyTest, EncodesProseFast) {
  const Tokenizer tokenizer = Tokenizer::load(file_).value();
  for (const std::size_t num_bytes : {std::size_t{4'000}, std::size_t{10'000'000}}) {
    const std::string text = prose(num_bytes);
    const double time = best_seconds(3, [&] { (void)tokenizer.encode(text); });
    report("prose", time, text.size());
    EXPECT_GT(static_cast<double>(text.size()) / time, kIsFast ? 5e6 : 5e4);
  }
}

// Hostile text must not cost much more per byte when there is much of it. A hundred times the text
// costs a hundred times as much per byte where the work is quadratic, ten times where it grows as
// n^1.5. What stays linear has been seen at 3.1: the small text and its tokens lie in the cache,
// the large ones do not.
struct Hostile {
  const char* name;
  std::function<std::string(std::size_t num_bytes)> make;
};

TEST_F(TokenizerHeavyTest, HostileTextGrowsLinearly) {
  const Tokenizer tokenizer = Tokenizer::load(file_).value();
  const auto repeated = [](std::string unit) {
    return [unit](std::size_t num_bytes) {
      std::string text;
      while (text.size() < num_bytes) text += unit;
      return text;
    };
  };
  const auto random_cjk = [](std::size_t num_bytes) {
    std::mt19937 random(9);
    std::string text;
    while (text.size() < num_bytes) append_utf8(0x4E00 + random() % 0x5000, &text);
    return text;
  };
  const auto random_letters = [](std::size_t num_bytes) {
    std::mt19937 random(9);
    std::string text;
    while (text.size() < num_bytes) text.push_back(static_cast<char>('a' + random() % 26));
    return text;
  };
  const auto spaces_then_letter = [](std::size_t num_bytes) {
    return std::string(num_bytes, ' ') + "x";
  };
  const Hostile cases[] = {
      {"one letter", repeated("a")},
      {"spaces", repeated(" ")},
      {"spaces, then a letter", spaces_then_letter},
      {"line ends", repeated("\n")},
      {"spaces and line ends", repeated("        \n")},
      {"digits", repeated("0123456789")},
      {"one CJK sentence", repeated("专家在磁盘上等待很久")},
      {"random CJK", random_cjk},
      {"random letters", random_letters},
      {"punctuation", repeated("!?")},
      {"control characters", repeated("\x01")},
      {"combining marks", repeated("\u0301")},
      {"emoji", repeated("👩‍👩‍👧")},
      {"almost added tokens", repeated("<｜begin▁of▁sentence")},
      {"added tokens", repeated("<think>")},
      {"invalid UTF-8", repeated("\xFF\xE2\x82")},
  };
  const std::size_t small = 100'000, large = kIsFast ? 10'000'000 : 1'000'000;
  const double kMostGrowth = kIsFast ? 8.0 : 3.0;  // n^1.45 in both
  for (const Hostile& hostile : cases) {
    const std::string small_text = hostile.make(small), large_text = hostile.make(large);
    const double small_time = best_seconds(5, [&] { (void)tokenizer.encode(small_text); });
    std::vector<TokenId> ids;
    const double large_time = best_seconds(2, [&] { ids = tokenizer.encode(large_text); });
    report(hostile.name, small_time, small_text.size());
    report(hostile.name, large_time, large_text.size());
    const double growth = (large_time / static_cast<double>(large_text.size())) /
                          (small_time / static_cast<double>(small_text.size()));
    fmt::print("{:<24} {:>9.2f} x per byte\n", hostile.name, growth);
    EXPECT_LT(growth, kMostGrowth) << hostile.name;
    if (hostile.name != std::string("invalid UTF-8")) {
      EXPECT_EQ(tokenizer.decode(ids) == large_text, true) << hostile.name;
    }
  }
}

}  // namespace
}  // namespace stoker
