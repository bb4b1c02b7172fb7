// A tokenizer.json with one token a byte, and the markers of DeepSeek-V3.2: texts of tests are
// their own tokens.
#pragma once

#include <filesystem>
#include <string>

#include "core/base/ids.h"
#include "core/model/model_config.h"

namespace stoker::test {

inline constexpr TokenId kByteBos = 0;
inline constexpr TokenId kByteEos = 1;
inline constexpr TokenId kFirstByte = 16;  // byte b is token kFirstByte + b
inline constexpr int kByteVocabSize = 272;

std::string byte_tokenizer_json();

// A tiny random checkpoint that takes and gives text: config.json, weights, generation_config.json
// and this tokenizer.json.
ModelConfig write_tiny_text_model(const std::filesystem::path& dir);

}  // namespace stoker::test
