// Answers of any shape: the strict parser, the streaming one with cuts taken from the input, and
// the render command's line. First byte: flags; second byte: seed of the cuts; then the text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/check.h"
#include "core/text/chat_format.h"
#include "core/text/chat_markers.h"
#include "core/text/render_case.h"
#include "core/text/stream_parser.h"
#include "tests/support/streamed_answer.h"

namespace stoker {
namespace {

using test::as_text;
using test::streamed_answer;

ChatMessage stream(StreamStart start, std::string_view text, unsigned seed) {
  return streamed_answer(start, text, [&seed] {
    seed = seed * 1103515245u + 12345u;
    return 1 + (seed >> 16) % 24;
  });
}

void check_answer(std::string_view text, bool thinks, unsigned seed) {
  const StreamStart start = thinks ? StreamStart::kReasoning : StreamStart::kContent;
  const ThinkingMode mode = thinks ? ThinkingMode::kThinking : ThinkingMode::kChat;
  const ChatMessage streamed = stream(start, text, seed);
  CHECK(as_text(streamed) == as_text(stream(start, text, seed + 1)), "cuts matter: {}", text);
  for (const std::string_view marker : markers::kNeverShown) {
    CHECK(streamed.content.find(marker) == std::string::npos, "{} leaks: {}", marker, text);
    CHECK(streamed.reasoning_content.find(marker) == std::string::npos, "{} leaks: {}", marker,
          text);
  }
  for (const char* name : {"v3.2", "v3.1", "r1", "v3"}) {
    const auto format = make_chat_format(name).value();
    const Result<ChatMessage> strict = format->parse(text, mode);
    // To the strict V3.2 parser the markers of other generations are plain text.
    if (!strict.ok() || text.find("<｜tool▁") != std::string_view::npos) continue;
    CHECK(as_text(streamed) == as_text(*strict), "{} disagrees: {}", name, text);
  }
}

void check_render(std::string_view line) {
  for (const char* name : {"v3.2", "v3.1", "r1", "v3"}) {
    const auto format = make_chat_format(name).value();
    for (const bool parse : {false, true}) {
      const std::string result = render_case_line(*format, line, parse);
      CHECK(result.find('\n') == std::string::npos, "more than a line: {}", result);
      CHECK(is_json(result), "not JSON: {}", result);
    }
  }
}

}  // namespace
}  // namespace stoker

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  if ((data[0] & 2) != 0) {
    stoker::check_render(text);
  } else {
    stoker::check_answer(text, (data[0] & 1) != 0, data[1]);
  }
  return 0;
}
