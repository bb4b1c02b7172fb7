// Shows an answer as text while it is made.
#pragma once

#include <functional>
#include <string_view>

#include "core/base/error.h"
#include "core/text/stream_parser.h"

namespace stoker::tools {

// On a terminal reasoning is shown dimmed and control characters are left out; otherwise only
// content and tool calls are written. A tool call is a line of its own: [tool call] NAME ARGUMENTS.
class AnswerView {
 public:
  using WriteFn = std::function<Status(std::string_view)>;
  AnswerView(bool terminal, WriteFn write) : terminal_(terminal), write_(std::move(write)) {}

  Status show(const StreamDelta& delta);
  // Ends the last line and whatever the terminal was told. An answer of nothing is an empty line.
  Status end();

 private:
  enum class Part { kNone, kReasoning, kContent, kCall };
  Status enter(Part part);
  Status put(std::string_view text);

  bool terminal_;
  WriteFn write_;
  Part part_ = Part::kNone;
  bool any_ = false;  // anything shown yet
  bool at_line_start_ = true;
};

}  // namespace stoker::tools
