#include "storage/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace stoker::storage {
namespace {

using ::testing::HasSubstr;

Manifest sample() {
  Manifest manifest;
  manifest.source_model = "Model \"7\" \xc3\xa9";
  manifest.source_config = {1, 2};
  manifest.plan = {0xfedcba9876543210u, 0x0123456789abcdefu};
  manifest.layers = {{1, 8, {QuantFormat::kInt4, 64}, 12288, 2},
                     {2, 8, {QuantFormat::kF8E4m3B128, 128}, 24576, 2}};
  ManifestFile config{.name = "config.json", .bytes = 17, .hash = {3, 4}};
  ManifestFile dense{
      .name = "dense.safetensors", .bytes = 4096, .is_data = true, .head = {5, 6}, .table = {7, 8}};
  manifest.files = {config, dense};
  return manifest;
}

std::string message(std::string_view text) {
  const auto parsed = parse_manifest(text);
  return parsed.ok() ? "" : parsed.error().message();
}

// `text` with its own hash put in order.
std::string rehashed(std::string text) {
  text.resize(text.rfind("  \"hash\": "));
  return text + "  \"hash\": \"" + hex(hash128(text)) + "\"\n}\n";
}

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  const std::size_t at = text.find(what);
  CHECK(at != std::string::npos, "{}", what);
  return rehashed(text.replace(at, what.size(), by));
}

TEST(Manifest, SaysWhatWasWritten) {
  const Manifest manifest = sample();
  const auto parsed = parse_manifest(manifest_text(manifest));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  EXPECT_EQ(parsed->source_model, manifest.source_model);
  EXPECT_EQ(parsed->source_config, manifest.source_config);
  EXPECT_EQ(parsed->plan, manifest.plan);
  EXPECT_EQ(parsed->layers, manifest.layers);
  EXPECT_EQ(parsed->files, manifest.files);
  EXPECT_EQ(parsed->file("config.json")->bytes, 17);
  EXPECT_EQ(parsed->file("other"), nullptr);
}

TEST(Manifest, EveryBitIsCovered) {
  const std::string text = manifest_text(sample());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ 1 << bit);
      EXPECT_NE(message(changed), "") << i << " " << bit;
    }
    EXPECT_NE(message(text.substr(0, i)), "") << i;
  }
  EXPECT_NE(message(text + "\n"), "");
}

TEST(Manifest, RefusesWhatItCannotRead) {
  const std::string text = manifest_text(sample());
  EXPECT_THAT(message(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(message("{}"), HasSubstr("format is missing"));
  EXPECT_THAT(message(replaced(text, "stoker-store", "other")),
              HasSubstr("format is \"other\", not \"stoker-store\""));
  EXPECT_THAT(message(replaced(text, "\"version\": 1", "\"version\": 2")),
              HasSubstr("has version 2, this stoker reads up to version 1: take a newer stoker"));
  EXPECT_THAT(message(replaced(text, "int4_g64", "int3_g64")),
              HasSubstr("layer 1: experts in format \"int3_g64\""));
  EXPECT_THAT(message(replaced(text, "\"experts\": 8", "\"experts\": 0")), HasSubstr("experts"));
  EXPECT_THAT(message(replaced(text, "\"layer\": 2", "\"layer\": 1")),
              HasSubstr("layer 1 does not come after layer 1"));
  EXPECT_THAT(message(replaced(text, "dense.safetensors", "../x")),
              HasSubstr("\"../x\" is not the name of a file"));
  EXPECT_THAT(message(replaced(text, "dense.safetensors", "config.json")),
              HasSubstr("file config.json is listed twice"));
  EXPECT_THAT(message(replaced(text, hex(Hash128{3, 4}), "3")), HasSubstr("hash"));
  EXPECT_THAT(message(replaced(text, "\"layers\": [", "\"layers\": 3, \"x\": [")),
              HasSubstr("layers must be a list"));
  EXPECT_THAT(message(replaced(text, "\"files\": [", "\"files\": [7,")),
              HasSubstr("files must hold objects, holds 7"));
}

}  // namespace
}  // namespace stoker::storage
