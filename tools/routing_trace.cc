#include "tools/routing_trace.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>

#include "storage/read_file.h"
#include "storage/safetensors.h"
#include "storage/safetensors_writer.h"

namespace stoker::tools {
namespace {

using storage::SafetensorsEntry;
using storage::SafetensorsHeader;
using storage::StoredType;

constexpr std::string_view kFormat = "stoker-routing-trace";
constexpr std::string_view kVersion = "2";
constexpr std::array<const char*, kMaxLead> kGuessNames = {"guess1", "guess2"};

template <typename T>
void extend(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// ---- Reading: an open file, its header, and what has been checked so far. ----

Result<int> parse_int(std::string_view text, int least, int most) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    return make_error(ErrorCode::kCorrupt, "\"{}\" is not an integer in [{}, {}]", text, least,
                      most);
  }
  return value;
}

class TraceReader {
 public:
  TraceReader(const storage::ReadFile& file, const SafetensorsHeader& header)
      : file_(file), header_(header) {}

  Result<RoutingTrace> read() {
    RETURN_IF_ERROR(read_metadata());
    RETURN_IF_ERROR(read_tensors());
    RETURN_IF_ERROR(check_tokens());
    return std::move(trace_);
  }

 private:
  Result<std::string_view> metadata(const std::string& key) const {
    const auto found = header_.metadata.find(key);
    if (found == header_.metadata.end()) {
      return make_error(ErrorCode::kCorrupt, "no \"{}\" in the metadata; is it a routing trace?",
                        key);
    }
    return std::string_view(found->second);
  }
  Result<int> metadata_int(const std::string& key, int least, int most) const {
    ASSIGN_OR_RETURN(const std::string_view text, metadata(key));
    ASSIGN_OR_RETURN(const int value, parse_int(text, least, most), "metadata \"{}\"", key);
    return value;
  }

  Status read_metadata() {
    ASSIGN_OR_RETURN(const std::string_view format, metadata("format"));
    ASSIGN_OR_RETURN(const std::string_view version, metadata("version"));
    if (format != kFormat) {
      return make_error(ErrorCode::kUnsupported, "format \"{}\"; a routing trace says \"{}\"",
                        format, kFormat);
    }
    if (version != kVersion) {
      return make_error(ErrorCode::kUnsupported, "version {}; this program reads version {}",
                        version, kVersion);
    }
    constexpr int kMaxExperts = std::numeric_limits<std::int16_t>::max();
    ASSIGN_OR_RETURN(trace_.num_experts, metadata_int("num_experts", 1, kMaxExperts));
    ASSIGN_OR_RETURN(trace_.top_k, metadata_int("top_k", 1, trace_.num_experts));
    ASSIGN_OR_RETURN(trace_.num_ranked, metadata_int("num_ranked", 0, trace_.num_experts));
    ASSIGN_OR_RETURN(std::string_view layers, metadata("layers"));
    int previous = -1;
    while (!layers.empty()) {
      const std::size_t comma = std::min(layers.find(','), layers.size());
      ASSIGN_OR_RETURN(
          previous,
          parse_int(layers.substr(0, comma), previous + 1, std::numeric_limits<int>::max() - 1),
          "metadata \"layers\", ascending indices");
      trace_.layers.push_back(previous);
      layers.remove_prefix(std::min(comma + 1, layers.size()));
    }
    if (trace_.layers.empty()) return Error(ErrorCode::kCorrupt, "it names no layers");
    if (header_.metadata.contains("model")) trace_.model = header_.metadata.at("model");
    return {};
  }

  const SafetensorsEntry* find(std::string_view name) const {
    const auto found =
        std::find_if(header_.entries.begin(), header_.entries.end(),
                     [&](const SafetensorsEntry& entry) { return entry.name == name; });
    return found == header_.entries.end() ? nullptr : &*found;
  }

  template <typename T>
  Status read_tensor(const char* name, StoredType type, const std::vector<std::int64_t>& shape,
                     std::vector<T>& out) const {
    const SafetensorsEntry* const entry = find(name);
    if (entry == nullptr) return make_error(ErrorCode::kCorrupt, "tensor \"{}\" is missing", name);
    if (entry->type != type || entry->shape != shape) {
      return make_error(ErrorCode::kCorrupt, "tensor \"{}\" is {} [{}]; {} [{}] was expected", name,
                        storage::stored_type_info(entry->type).name, fmt::join(entry->shape, ", "),
                        storage::stored_type_info(type).name, fmt::join(shape, ", "));
    }
    out.resize(static_cast<std::size_t>(entry->bytes) / sizeof(T));
    return file_.read(entry->offset, std::as_writable_bytes(std::span(out)));
  }

  Status read_tensors() {
    const SafetensorsEntry* const steps = find("step");
    if (steps == nullptr || steps->shape.size() != 1 || steps->shape[0] < 1) {
      return Error(ErrorCode::kCorrupt,
                   "a tensor \"step\" [T] with at least one token is expected");
    }
    const std::int64_t tokens = steps->shape[0];
    const std::vector<std::int64_t> chosen = {tokens, trace_.num_layers(), trace_.top_k};
    const std::vector<std::int64_t> ranked = {tokens, trace_.num_layers(), trace_.num_ranked};
    RETURN_IF_ERROR(read_tensor("step", StoredType::kI32, {tokens}, trace_.step));
    std::vector<std::uint8_t> purpose;
    RETURN_IF_ERROR(read_tensor("purpose", StoredType::kU8, {tokens}, purpose));
    for (const std::uint8_t value : purpose) {
      if (value > 1) return make_error(ErrorCode::kCorrupt, "purpose {} is neither 0 nor 1", value);
      trace_.purpose.push_back(value == 0 ? Purpose::kDecode : Purpose::kPrefill);
    }
    RETURN_IF_ERROR(read_tensor("experts", StoredType::kI16, chosen, trace_.experts));
    if (find("token") != nullptr) {
      RETURN_IF_ERROR(read_tensor("token", StoredType::kI32, {tokens}, trace_.token_ids));
      const auto least = std::min_element(trace_.token_ids.begin(), trace_.token_ids.end());
      if (*least < 0) return make_error(ErrorCode::kCorrupt, "{} is no token id", *least);
    }
    if (find("weights") != nullptr) {
      RETURN_IF_ERROR(read_tensor("weights", StoredType::kF32, chosen, trace_.weights));
    }
    if (trace_.num_ranked == 0) return {};
    for (std::size_t i = 0; i < kGuessNames.size(); ++i) {
      RETURN_IF_ERROR(read_tensor(kGuessNames[i], StoredType::kI16, ranked, trace_.guesses[i]));
    }
    return {};
  }

  Status check_tokens() {
    if (trace_.step.front() < 0 || !std::is_sorted(trace_.step.begin(), trace_.step.end())) {
      return Error(ErrorCode::kCorrupt, "\"step\" falls from one token to the next");
    }
    for (std::int64_t token = 0; token < trace_.num_tokens(); ++token) {
      for (int place = 0; place < trace_.num_layers(); ++place) {
        const auto where = [&] {
          return fmt::format("token {}, layer {}", token, trace_.layers[place]);
        };
        RETURN_IF_ERROR(check_ids(trace_.chosen(token, place), /*may_end=*/false),
                        "\"experts\", {}", where());
        for (int lead = 1; trace_.num_ranked > 0 && lead <= kMaxLead; ++lead) {
          RETURN_IF_ERROR(check_ids(trace_.guessed(lead, token, place), /*may_end=*/true),
                          "\"guess{}\", {}", lead, where());
        }
      }
    }
    return {};
  }

  // Distinct ids in [0, num_experts); with `may_end` only up to the first kNoGuess, after which
  // nothing else may stand.
  Status check_ids(std::span<const std::int16_t> ids, bool may_end) {
    seen_.resize(static_cast<std::size_t>(trace_.num_experts));
    ++stamp_;
    bool ended = false;
    for (const std::int16_t id : ids) {
      if (may_end && id == kNoGuess) {
        ended = true;
        continue;
      }
      if (id < 0 || id >= trace_.num_experts) {
        return make_error(ErrorCode::kCorrupt, "{} is not an expert in [0, {})", id,
                          trace_.num_experts);
      }
      if (ended) return make_error(ErrorCode::kCorrupt, "expert {} stands behind the end", id);
      if (std::exchange(seen_[static_cast<std::size_t>(id)], stamp_) == stamp_) {
        return make_error(ErrorCode::kCorrupt, "expert {} stands twice", id);
      }
    }
    return {};
  }

  const storage::ReadFile& file_;
  const SafetensorsHeader& header_;
  RoutingTrace trace_;
  std::vector<std::int64_t> seen_;  // by expert: the row that last held it
  std::int64_t stamp_ = 0;
};

Result<SafetensorsHeader> read_header(const storage::ReadFile& file) {
  std::vector<std::byte> head(static_cast<std::size_t>(std::min<std::int64_t>(8, file.size())));
  RETURN_IF_ERROR(file.read(0, head));
  ASSIGN_OR_RETURN(const std::int64_t begin, storage::safetensors_data_begin(head, file.size()));
  head.resize(static_cast<std::size_t>(begin));
  RETURN_IF_ERROR(file.read(0, head));
  return storage::parse_safetensors(head, file.size());
}

}  // namespace

int RoutingTrace::place_of(int layer) const {
  const auto found = std::lower_bound(layers.begin(), layers.end(), layer);
  return found == layers.end() || *found != layer ? -1 : static_cast<int>(found - layers.begin());
}

std::int64_t RoutingTrace::bytes_per_token() const {
  const std::int64_t weight_bytes = weights.empty() ? 0 : sizeof(float);
  const std::int64_t id_bytes = sizeof(std::int16_t);
  return num_layers() * (top_k * (id_bytes + weight_bytes) + kMaxLead * num_ranked * id_bytes) +
         static_cast<std::int64_t>(sizeof(Purpose) + sizeof(std::int32_t) +
                                   (token_ids.empty() ? 0 : sizeof(TokenId)));
}

RoutingTrace RoutingTrace::without_tokens() const {
  RoutingTrace trace;
  trace.layers = layers;
  trace.num_experts = num_experts;
  trace.top_k = top_k;
  trace.num_ranked = num_ranked;
  trace.model = model;
  return trace;
}

void RoutingTrace::reserve(std::int64_t tokens, bool with_weights) {
  const auto count = static_cast<std::size_t>(tokens);
  const std::size_t rows = count * layers.size();
  experts.reserve(rows * static_cast<std::size_t>(top_k));
  if (with_weights) weights.reserve(rows * static_cast<std::size_t>(top_k));
  for (auto& lead : guesses) lead.reserve(rows * static_cast<std::size_t>(num_ranked));
  purpose.reserve(count);
  step.reserve(count);
  token_ids.reserve(count);
}

void RoutingTrace::append(const RoutingTrace& tail) {
  CHECK(tail.layers == layers && tail.top_k == top_k && tail.num_ranked == num_ranked,
        "traces of different shapes");
  extend(experts, tail.experts);
  extend(weights, tail.weights);
  for (std::size_t i = 0; i < guesses.size(); ++i) extend(guesses[i], tail.guesses[i]);
  extend(purpose, tail.purpose);
  extend(step, tail.step);
  extend(token_ids, tail.token_ids);
}

std::vector<int> moe_layers(const ModelConfig& config) {
  std::vector<int> layers;
  for (const LayerSpec& spec : config.layers()) {
    if (spec.role == LayerRole::kMain && spec.ffn == FfnKind::kMoe) layers.push_back(spec.index);
  }
  return layers;
}

Status write_routing_trace(const std::filesystem::path& path,
                           std::span<const RoutingTrace> pieces) {
  CHECK(!pieces.empty(), "no pieces");
  // 1. Shapes.
  const RoutingTrace& first = pieces.front();
  std::int64_t tokens = 0;
  for (const RoutingTrace& piece : pieces) tokens += piece.num_tokens();
  const std::vector<std::int64_t> chosen = {tokens, first.num_layers(), first.top_k};
  const std::vector<std::int64_t> ranked = {tokens, first.num_layers(), first.num_ranked};
  std::vector<storage::TensorDecl> tensors = {{"experts", StoredType::kI16, chosen},
                                              {"purpose", StoredType::kU8, {tokens}},
                                              {"step", StoredType::kI32, {tokens}}};
  const bool named = !first.token_ids.empty();
  const bool weighted = !first.weights.empty();
  const bool guessed = first.num_ranked > 0;
  if (named) tensors.push_back({"token", StoredType::kI32, {tokens}});
  if (weighted) tensors.push_back({"weights", StoredType::kF32, chosen});
  if (guessed) {
    for (const char* name : kGuessNames) tensors.push_back({name, StoredType::kI16, ranked});
  }
  const std::map<std::string, std::string> metadata = {
      {"format", std::string(kFormat)},
      {"version", std::string(kVersion)},
      {"layers", fmt::format("{}", fmt::join(first.layers, ","))},
      {"num_experts", std::to_string(first.num_experts)},
      {"top_k", std::to_string(first.top_k)},
      {"num_ranked", std::to_string(first.num_ranked)},
      {"model", first.model}};
  // 2. Bytes, piece by piece.
  ASSIGN_OR_RETURN(
      storage::SafetensorsWriter writer,
      storage::SafetensorsWriter::create(path, std::move(tensors), {.metadata = metadata}));
  for (const RoutingTrace& piece : pieces) {
    std::size_t next = 0;
    const auto append = [&](const auto& values) {
      return writer.append(next++, std::as_bytes(std::span(values)));
    };
    RETURN_IF_ERROR(append(piece.experts));
    RETURN_IF_ERROR(append(piece.purpose));
    RETURN_IF_ERROR(append(piece.step));
    if (named) RETURN_IF_ERROR(append(piece.token_ids));
    if (weighted) RETURN_IF_ERROR(append(piece.weights));
    if (!guessed) continue;
    for (const auto& guesses : piece.guesses) RETURN_IF_ERROR(append(guesses));
  }
  return writer.finish();
}

Result<RoutingTrace> read_routing_trace(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const storage::ReadFile file, storage::ReadFile::open(path));
  ASSIGN_OR_RETURN(const SafetensorsHeader header, read_header(file), "{}", path.string());
  ASSIGN_OR_RETURN(RoutingTrace trace, TraceReader(file, header).read(), "{}", path.string());
  return trace;
}

Status check_trace(const RoutingTrace& trace, const ModelConfig& config) {
  const auto differs = [](std::string_view what, const auto& in_trace, const auto& in_model) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the trace is of another model: {} {} there, {} in the model; make one with "
                      "stoker simulate MODEL --make-trace, or record it on this model",
                      what, in_trace, in_model);
  };
  if (trace.num_experts != config.n_routed_experts) {
    return differs("routed experts:", trace.num_experts, config.n_routed_experts);
  }
  if (trace.top_k != config.num_experts_per_tok) {
    return differs("experts per token:", trace.top_k, config.num_experts_per_tok);
  }
  const std::vector<int> layers = moe_layers(config);
  if (trace.layers != layers) {
    return differs("MoE layers:", fmt::format("[{}]", fmt::join(trace.layers, ", ")),
                   fmt::format("[{}]", fmt::join(layers, ", ")));
  }
  return {};
}

}  // namespace stoker::tools
