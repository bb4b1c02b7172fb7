#include "tools/text_model.h"

#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/model/json_fields.h"
#include "core/model/model_config.h"
#include "tools/standard_io.h"

namespace stoker::tools {
namespace {

Status read_config_facts(const std::filesystem::path& directory, ChatModelFacts& facts) {
  const std::filesystem::path path = directory / "config.json";
  ASSIGN_OR_RETURN(const std::string text, read_small_file(path, ModelConfig::kMaxBytes),
                   "which chat format the model speaks (--chat-format can say it)");
  ASSIGN_OR_RETURN(const nlohmann::json json, parse_json_object(text), "{}", path.string());
  JsonFields fields(json);
  facts.model_type = fields.text("model_type");
  if (const nlohmann::json* quantization = fields.find("quantization_config");
      quantization != nullptr && quantization->is_object()) {
    JsonFields inner(*quantization, "quantization_config.");
    facts.scale_fmt = inner.text("scale_fmt", "");
    RETURN_IF_ERROR(inner.status(), "{}", path.string());
  }
  RETURN_IF_ERROR(fields.status(), "{}", path.string());
  return {};
}

Result<std::unique_ptr<ChatFormat>> detected_format(const std::filesystem::path& directory,
                                                    const Tokenizer& tokenizer) {
  ChatModelFacts facts;
  facts.has_dsml_token = tokenizer.find("｜DSML｜").has_value();
  facts.has_think_tokens =
      tokenizer.find("<think>").has_value() && tokenizer.find("</think>").has_value();
  facts.has_search_tokens = tokenizer.find("<｜search▁begin｜>").has_value() &&
                            tokenizer.find("<｜search▁end｜>").has_value();
  // The tokenizer alone identifies V3.2.
  if (!facts.has_dsml_token) RETURN_IF_ERROR(read_config_facts(directory, facts));
  return make_chat_format("auto", facts);
}

Status require_directory(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return {};
  return make_error(ErrorCode::kNotFound,
                    "{} is not a directory; MODEL is a directory with config.json and "
                    "tokenizer.json",
                    path.string());
}

}  // namespace

void add_chat_format_flag(CLI::App& app, TextFlags& flags) {
  app.add_option("--chat-format", flags.chat_format,
                 "How conversations become prompts; auto: as the model's files say")
      ->check(CLI::IsMember({"auto", "v3.2", "v3.1", "r1", "v3"}))
      ->capture_default_str();
}

void add_thinking_flag(CLI::App& app, TextFlags& flags) {
  app.add_option("--thinking", flags.thinking, "Let the model reason before it answers")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
}

void add_text_directory(CLI::App& app, std::string& directory) {
  app.add_option("MODEL", directory,
                 "Directory with config.json and tokenizer.json; no weights are needed")
      ->required();
}

Result<Tokenizer> load_tokenizer(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    RETURN_IF_ERROR(require_directory(path));
    if (!std::filesystem::exists(path / "tokenizer.json", error)) {
      return make_error(ErrorCode::kNotFound,
                        "{} has no tokenizer.json; it belongs to the model's published files",
                        path.string());
    }
  }
  return Tokenizer::load(path.string());
}

Result<std::unique_ptr<ChatFormat>> load_chat_format(const std::filesystem::path& directory,
                                                     const std::string& name) {
  if (name != "auto") {
    RETURN_IF_ERROR(require_directory(directory));
    return make_chat_format(name);
  }
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, load_tokenizer(directory));
  return detected_format(directory, tokenizer);
}

Result<TextModel> load_text_model(const std::filesystem::path& directory,
                                  const std::string& format_name) {
  ASSIGN_OR_RETURN(Tokenizer tokenizer, load_tokenizer(directory));
  ASSIGN_OR_RETURN(std::unique_ptr<ChatFormat> format, format_name == "auto"
                                                           ? detected_format(directory, tokenizer)
                                                           : make_chat_format(format_name));
  return TextModel{std::move(tokenizer), std::move(format)};
}

Result<std::vector<JsonValue>> read_tools(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, read_input(path));
  ASSIGN_OR_RETURN(const JsonValue json, parse_json(text), "{}", path);
  const JsonValue* list = json.find("tools");
  if (list == nullptr) list = &json;
  const JsonArray* array = list->if_array();
  if (array == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "{}: expected an array of tools, found {}", path,
                      list->kind_name());
  }
  std::vector<JsonValue> tools;
  for (std::size_t i = 0; i < array->size(); ++i) {
    const JsonValue* function = (*array)[i].find("function");
    if (function == nullptr) function = &(*array)[i];
    const JsonValue* name = function->find("name");
    if (name == nullptr || name->if_string() == nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: tool {} is no function with a name; a tool reads {{\"type\": "
                        "\"function\", \"function\": {{\"name\": ..., \"parameters\": ...}}}}",
                        path, i);
    }
    tools.push_back(*function);
  }
  return tools;
}

}  // namespace stoker::tools
