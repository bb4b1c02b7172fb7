#include "tools/answer_view.h"

#include <string>

#include "tools/standard_io.h"

namespace stoker::tools {
namespace {

constexpr std::string_view kDim = "\033[2m";
constexpr std::string_view kPlain = "\033[0m";

}  // namespace

Status AnswerView::put(std::string_view text) {
  const std::string shown = terminal_ ? without_controls(text) : std::string(text);
  if (shown.empty()) return {};
  any_ = true;
  at_line_start_ = shown.back() == '\n';
  return write_(shown);
}

Status AnswerView::enter(Part part) {
  if (part == part_ && part != Part::kCall) return {};
  const bool was_dim = terminal_ && part_ == Part::kReasoning;
  if (was_dim) RETURN_IF_ERROR(write_(kPlain));
  if (!at_line_start_) RETURN_IF_ERROR(put("\n"));
  part_ = part;
  if (terminal_ && part == Part::kReasoning) return write_(kDim);
  return {};
}

Status AnswerView::show(const StreamDelta& delta) {
  switch (delta.kind) {
    case StreamDelta::Kind::kReasoning:
      if (!terminal_ || delta.text.empty()) return {};
      RETURN_IF_ERROR(enter(Part::kReasoning));
      return put(delta.text);
    case StreamDelta::Kind::kContent:
      if (delta.text.empty()) return {};
      RETURN_IF_ERROR(enter(Part::kContent));
      return put(delta.text);
    case StreamDelta::Kind::kToolBegin:
      RETURN_IF_ERROR(enter(Part::kCall));
      return put("[tool call] " + delta.text + " ");
    case StreamDelta::Kind::kToolArguments:
      return put(delta.text);
    case StreamDelta::Kind::kToolEnd:
      return put(delta.complete ? "\n" : " (cut off)\n");
  }
  return {};
}

Status AnswerView::end() {
  RETURN_IF_ERROR(enter(Part::kNone));
  return any_ ? Status() : put("\n");
}

}  // namespace stoker::tools
