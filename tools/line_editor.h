// Reads what a person types: editing, history, several lines, pasted text.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

namespace stoker::tools {

// $XDG_STATE_HOME/stoker/history, else ~/.local/state/stoker/history; empty if there is no home.
std::filesystem::path default_history_file();

// Not thread-safe. Sets the locale's character type if it is not UTF-8 yet.
class LineEditor {
 public:
  enum class Outcome {
    kText,
    kInterrupted,  // Ctrl-C; `text` is what stood there
    kEnd,          // Ctrl-D on an empty line, or no more input
  };
  struct Input {
    Outcome outcome = Outcome::kEnd;
    std::string text;  // valid UTF-8, lines separated by '\n', none at the end
  };

  // `input` is a terminal. History is kept in `history_file` unless that is empty or cannot be
  // written: it is a convenience.
  LineEditor(std::FILE* input, std::FILE* output, std::filesystem::path history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // One message. A backslash at the end of a line continues it on the next.
  Input read(const std::string& prompt);

 private:
  struct State;  // libedit's, kept out of this header
  std::unique_ptr<State> state_;
};

}  // namespace stoker::tools
