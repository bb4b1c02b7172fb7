// The published encoder's cases, where a shared directory holds them.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/text/json_text.h"

namespace stoker {

struct GoldenCase {
  std::string id, kind;
  std::string line;  // as it stands in the file
  JsonValue json;
};

// Empty if there is no such file.
inline std::vector<GoldenCase> load_golden_cases() {
  std::vector<GoldenCase> cases;
  const std::filesystem::path shared = STOKER_SHARED_DIR;
  if (shared.empty()) return cases;
  std::ifstream file(shared / "golden" / "chat_encoding.jsonl");
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    JsonValue json = parse_json(line).value();
    cases.push_back({.id = *json.find("id")->if_string(),
                     .kind = *json.find("kind")->if_string(),
                     .line = line,
                     .json = json});
  }
  return cases;
}

}  // namespace stoker
