// An answer as StreamParser reads it from pieces.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/chat_format.h"
#include "core/text/stream_parser.h"

namespace stoker::test {

// `next_size` chooses the next cut: how many of the remaining bytes the next piece takes.
template <typename NextSize>
ChatMessage streamed_answer(StreamStart start, std::string_view text, NextSize next_size) {
  StreamParser parser(start);
  std::vector<StreamDelta> deltas;
  while (!text.empty()) {
    const std::size_t n = std::min<std::size_t>(text.size(), next_size());
    parser.feed(text.substr(0, n), deltas);
    text.remove_prefix(n);
  }
  parser.finish(deltas);
  ChatMessage message;
  message.role = Role::kAssistant;
  for (const StreamDelta& delta : deltas) apply_delta(delta, message);
  return message;
}

inline std::string as_text(const ChatMessage& message) {
  return to_json_text(message_to_json(message));
}

}  // namespace stoker::test
