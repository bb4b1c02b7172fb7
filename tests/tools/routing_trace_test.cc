#include "tools/routing_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "core/base/file.h"
#include "storage/safetensors.h"
#include "storage/safetensors_writer.h"
#include "tests/support/published_configs.h"
#include "tests/support/temp_dir.h"
#include "tools/eval_files.h"

namespace stoker::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig tiny() { return ModelConfig::parse(test::tiny_config()).value(); }

// Two layers, five experts, two chosen, three guesses; `tokens` of them, a step each.
RoutingTrace small_trace(int tokens, int first_step = 0) {
  RoutingTrace trace;
  trace.layers = {3, 7};
  trace.num_experts = 5;
  trace.top_k = 2;
  trace.num_ranked = 3;
  trace.model = "small";
  for (int t = 0; t < tokens; ++t) {
    const auto id = [t](int add) { return static_cast<std::int16_t>((t + add) % 5); };
    for (const int add : {0, 1, 4, 2}) trace.experts.push_back(id(add));
    for (const int add : {1, 2, 3, 4}) trace.weights.push_back(0.25f * static_cast<float>(add + t));
    for (auto& guesses : trace.guesses) {
      for (const int add : {4, 0}) guesses.push_back(id(add));
      for (int i = 0; i < 4; ++i) guesses.push_back(kNoGuess);
    }
    trace.purpose.push_back(t == 0 ? Purpose::kPrefill : Purpose::kDecode);
    trace.step.push_back(first_step + t);
    trace.token_ids.push_back(100 + t);
  }
  return trace;
}

std::string read_error(const std::filesystem::path& path) {
  const auto trace = read_routing_trace(path);
  return trace.ok() ? std::string() : trace.error().message();
}

// The message that reading `trace` gives after it has been written.
std::string error_of(const RoutingTrace& trace) {
  const test::TempDir dir;
  const auto path = dir.path() / "t.trace";
  CHECK(write_routing_trace(path, {&trace, 1}).ok(), "written");
  const std::string message = read_error(path);
  EXPECT_EQ(message.empty() ? path.string() : message.substr(0, path.string().size()),
            path.string());
  return message;
}

TEST(RoutingTrace, ComesBackFromItsFile) {
  const test::TempDir dir;
  const auto path = dir.path() / "t.trace";
  const std::vector<RoutingTrace> pieces = {small_trace(3), small_trace(4, 3)};
  ASSERT_TRUE(write_routing_trace(path, pieces).ok());
  const auto read = read_routing_trace(path);
  ASSERT_TRUE(read.ok()) << read.error().message();
  RoutingTrace whole = pieces[0];
  whole.append(pieces[1]);
  EXPECT_EQ(read->layers, whole.layers);
  EXPECT_EQ(read->num_experts, 5);
  EXPECT_EQ(read->top_k, 2);
  EXPECT_EQ(read->num_ranked, 3);
  EXPECT_EQ(read->model, "small");
  EXPECT_EQ(read->experts, whole.experts);
  EXPECT_EQ(read->weights, whole.weights);
  EXPECT_EQ(read->guesses, whole.guesses);
  EXPECT_EQ(read->purpose, whole.purpose);
  EXPECT_EQ(read->step, whole.step);
  EXPECT_EQ(read->token_ids, whole.token_ids);
  EXPECT_THAT(read->chosen(4, 1), ElementsAre(0, 3));
  EXPECT_THAT(read->guessed(2, 1, 0), ElementsAre(0, 1, kNoGuess));
  EXPECT_EQ(read->place_of(7), 1);
  EXPECT_EQ(read->place_of(4), -1);
}

TEST(RoutingTrace, HoldsTheTensorsThatItsDrawingSays) {
  const test::TempDir dir;
  RoutingTrace trace = small_trace(6);
  trace.weights.clear();
  ASSERT_TRUE(write_routing_trace(dir.path() / "t", {&trace, 1}).ok());
  const std::string file = *read_small_file(dir.path() / "t", 1 << 20);
  const auto header = storage::parse_safetensors(std::as_bytes(std::span(file)), std::ssize(file));
  ASSERT_TRUE(header.ok()) << header.error().message();
  std::vector<std::string> described;
  for (const auto& entry : header->entries) {
    described.push_back(fmt::format("{} {} {}", entry.name,
                                    storage::stored_type_info(entry.type).name,
                                    ::testing::PrintToString(entry.shape)));
  }
  EXPECT_THAT(described,
              ::testing::UnorderedElementsAre("experts I16 { 6, 2, 2 }", "guess1 I16 { 6, 2, 3 }",
                                              "guess2 I16 { 6, 2, 3 }", "purpose U8 { 6 }",
                                              "step I32 { 6 }", "token I32 { 6 }"));
  EXPECT_EQ(header->metadata.at("layers"), "3,7");
  EXPECT_EQ(header->metadata.at("version"), "2");
}

TEST(RoutingTrace, IdsThatMakeNoSenseAreRefused) {
  const auto with = [](auto change) {
    RoutingTrace trace = small_trace(6);
    change(trace);
    return error_of(trace);
  };
  EXPECT_EQ(with([](RoutingTrace&) {}), "");
  EXPECT_THAT(with([](RoutingTrace& t) { t.experts[9] = 5; }),
              HasSubstr("\"experts\", token 2, layer 3: 5 is not an expert in [0, 5)"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.experts[0] = -1; }), HasSubstr("-1 is not an expert"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.experts[3] = t.experts[2]; }),
              HasSubstr("\"experts\", token 0, layer 7: expert 4 stands twice"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.guesses[1][0] = kNoGuess; }),
              HasSubstr("\"guess2\", token 0, layer 3: expert 0 stands behind the end"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.guesses[0][0] = -2; }), HasSubstr("-2 is not"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.step[3] = 1; }), HasSubstr("\"step\" falls"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.step[0] = -1; }), HasSubstr("\"step\" falls"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.token_ids[4] = -7; }), HasSubstr("-7 is no token id"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.purpose[2] = static_cast<Purpose>(2); }),
              HasSubstr("purpose 2 is neither 0 nor 1"));
  EXPECT_THAT(with([](RoutingTrace& t) { t.layers = {3, 3}; }), HasSubstr("metadata \"layers\""));
  EXPECT_THAT(with([](RoutingTrace& t) { t.num_experts = 40000; }), HasSubstr("\"num_experts\""));
  EXPECT_THAT(with([](RoutingTrace& t) { t = t.without_tokens(); }), HasSubstr("one token"));
}

TEST(RoutingTrace, FilesOfOtherKindsAreRefused) {
  using storage::StoredType;
  const test::TempDir dir;
  const auto path = dir.path() / "t";
  EXPECT_THAT(read_error(path), HasSubstr(path.string()));
  const auto error_of_file = [&](std::vector<storage::TensorDecl> tensors,
                                 const std::map<std::string, std::string>& metadata) {
    auto writer = storage::SafetensorsWriter::create(path, tensors, {.metadata = metadata});
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::vector<std::byte> zeros(static_cast<std::size_t>(tensors[i].bytes()));
      CHECK(writer->append(i, zeros).ok(), "written");
    }
    CHECK(writer->finish().ok(), "written");
    return read_error(path);
  };
  std::map<std::string, std::string> metadata = {{"format", "stoker-routing-trace"},
                                                 {"version", "2"},
                                                 {"layers", "0"},
                                                 {"num_experts", "4"},
                                                 {"top_k", "1"},
                                                 {"num_ranked", "0"}};
  const storage::TensorDecl step = {"step", StoredType::kI32, {2}};
  const storage::TensorDecl purpose = {"purpose", StoredType::kU8, {2}};
  const storage::TensorDecl experts = {"experts", StoredType::kI16, {2, 1, 1}};
  EXPECT_EQ(error_of_file({step, purpose, experts}, metadata), "");
  EXPECT_THAT(error_of_file({step, experts}, metadata), HasSubstr("\"purpose\" is missing"));
  EXPECT_THAT(error_of_file({step, purpose, {"experts", StoredType::kI16, {2, 2, 1}}}, metadata),
              HasSubstr("\"experts\" is I16 [2, 2, 1]; I16 [2, 1, 1] was expected"));
  EXPECT_THAT(error_of_file({step, purpose, {"experts", StoredType::kI32, {2, 1, 1}}}, metadata),
              HasSubstr("is I32"));
  EXPECT_THAT(error_of_file({purpose, experts}, metadata), HasSubstr("\"step\" [T]"));
  metadata["version"] = "1";
  EXPECT_THAT(error_of_file({step}, metadata), HasSubstr("version 1; this program reads"));
  metadata["format"] = "pt";
  EXPECT_THAT(error_of_file({step}, metadata), HasSubstr("format \"pt\""));
  metadata.erase("format");
  EXPECT_THAT(error_of_file({step}, metadata), HasSubstr("is it a routing trace?"));
}

TEST(RoutingTrace, ATruncatedFileIsRefused) {
  const test::TempDir dir;
  const RoutingTrace trace = small_trace(6);
  ASSERT_TRUE(write_routing_trace(dir.path() / "t", {&trace, 1}).ok());
  const auto size = std::filesystem::file_size(dir.path() / "t");
  for (const std::uintmax_t cut : {size - 1, size / 2, std::uintmax_t{9}, std::uintmax_t{0}}) {
    std::filesystem::resize_file(dir.path() / "t", cut);
    EXPECT_NE(read_error(dir.path() / "t"), "") << cut;
  }
}

TEST(RoutingTrace, MustBeOfThisModel) {
  const ModelConfig config = tiny();
  RoutingTrace trace;
  trace.layers = {1, 2, 3};
  trace.num_experts = 12;
  trace.top_k = 3;
  EXPECT_TRUE(check_trace(trace, config).ok());
  trace.layers = {1, 2};
  EXPECT_THAT(check_trace(trace, config).error().message(),
              HasSubstr("MoE layers: [1, 2] there, [1, 2, 3] in the model"));
  trace.top_k = 4;
  EXPECT_THAT(check_trace(trace, config).error().message(),
              HasSubstr("experts per token: 4 there, 3 in the model"));
  trace.num_experts = 13;
  EXPECT_THAT(check_trace(trace, config).error().message(), HasSubstr("13 there, 12 in"));
}

TEST(ReadRoutes, TakesARoutesFileOrATrace) {
  const test::TempDir dir;
  const ModelConfig config = tiny();
  std::ofstream(dir.path() / "routes.json")
      << R"({"layers": [{"layer": 1, "experts": [[0, 1, 2], [3, 4, 5]],
                         "weights": [[0.5, 0.25, 0.25], [1, 2, 3]]},
                        {"layer": 3, "experts": [[9, 10, 11], [6, 7, 8]]}]})";
  const auto routes = read_routes(dir.path() / "routes.json", config, 2);
  ASSERT_TRUE(routes.ok()) << routes.error().message();
  EXPECT_THAT(routes->layers, ElementsAre(1, 3));
  EXPECT_THAT(routes->chosen(1, 0), ElementsAre(3, 4, 5));
  EXPECT_THAT(routes->chosen(0, 1), ElementsAre(9, 10, 11));
  EXPECT_THAT(routes->chosen_weights(1, 0), ElementsAre(1.0f, 2.0f, 3.0f));
  EXPECT_TRUE(std::isnan(routes->chosen_weights(1, 1)[0]));
  EXPECT_TRUE(read_routes(dir.path() / "routes.json", config, 0).ok());
  EXPECT_THAT(read_routes(dir.path() / "routes.json", config, 3).error().message(),
              HasSubstr("must list 3 rows"));

  RoutingTrace trace = routes->without_tokens();
  trace.layers = {1, 2, 3};
  for (const int id : {0, 1, 2, 3, 4, 5, 6, 7, 8})
    trace.experts.push_back(static_cast<std::int16_t>(id));
  trace.purpose = {Purpose::kDecode};
  trace.step = {0};
  ASSERT_TRUE(write_routing_trace(dir.path() / "t", {&trace, 1}).ok());
  const auto read = read_routes(dir.path() / "t", config, 5);
  ASSERT_TRUE(read.ok()) << read.error().message();
  EXPECT_EQ(read->experts, trace.experts);
  const ModelConfig other = ModelConfig::parse(test::deepseek_v32_config()).value();
  EXPECT_THAT(read_routes(dir.path() / "t", other, 5).error().message(),
              HasSubstr("of another model"));
}

}  // namespace
}  // namespace stoker::tools
