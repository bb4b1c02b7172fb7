// The text side of a model directory: its tokenizer and its chat format. Needs no weights.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/text/chat_format.h"
#include "core/text/tokenizer.h"

namespace stoker::tools {

// Flags that commands which talk share.
struct TextFlags {
  std::string chat_format = "auto";
  std::string thinking = "off";

  ThinkingMode mode() const {
    return thinking == "on" ? ThinkingMode::kThinking : ThinkingMode::kChat;
  }
};

void add_chat_format_flag(CLI::App& app, TextFlags& flags);
void add_thinking_flag(CLI::App& app, TextFlags& flags);

// MODEL where it must be given and only its text files are used.
void add_text_directory(CLI::App& app, std::string& directory);

// tokenizer.json of a directory, or the file itself.
Result<Tokenizer> load_tokenizer(const std::filesystem::path& path);

// `name` as --chat-format takes it; "auto" is decided by what config.json and tokenizer.json of
// `directory` say, and only then are they looked at.
Result<std::unique_ptr<ChatFormat>> load_chat_format(const std::filesystem::path& directory,
                                                     const std::string& name);

struct TextModel {
  Tokenizer tokenizer;
  std::unique_ptr<ChatFormat> format;
};

Result<TextModel> load_text_model(const std::filesystem::path& directory,
                                  const std::string& format_name);

// The functions of a tools file: a JSON array of OpenAI tools ({"type": "function", "function":
// {...}}) or of bare functions, or an object with such an array as "tools".
Result<std::vector<JsonValue>> read_tools(const std::string& path);

}  // namespace stoker::tools
