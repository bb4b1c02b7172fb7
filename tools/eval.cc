// stoker eval: runs token ids through the model and writes what it computed; perplexity of a text.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "core/text/tokenizer.h"
#include "tools/command.h"
#include "tools/eval_files.h"
#include "tools/hook_chain.h"
#include "tools/model.h"
#include "tools/progress_bar.h"
#include "tools/run_record.h"
#include "tools/standard_io.h"
#include "tools/trace_hooks.h"

namespace stoker::tools {
namespace {

struct EvalFlags {
  ModelFlags model;
  std::string tokens, text;
  std::string logits, routes, selected;
  std::vector<int> rows;
  int chunk = 0;
  std::string force_routes, force_selected;
};

// Records and forces the selections of a run whose steps are consecutive chunks of one sequence.
class SelectionHooks final : public StepHooks {
 public:
  explicit SelectionHooks(int top_k) : top_k_(static_cast<std::size_t>(top_k)) {}

  void force(Selections selections) { forced_ = std::move(selections); }
  // Records the selections of `rows`; empty: of every row.
  void record(const std::vector<int>& rows) {
    recorded_.emplace();
    wanted_rows_.insert(rows.begin(), rows.end());
  }
  const Selections& recorded() const { return *recorded_; }

  void on_begin(const StepBatch& batch) override {
    num_rows_ = static_cast<int>(batch.tokens.size());
  }
  void on_end() override { first_row_ += num_rows_; }
  std::span<const std::int32_t> forced_selection(int layer, int row) override {
    const auto rows = forced_.layers.find(layer);
    if (rows == forced_.layers.end()) return {};
    const auto positions = rows->second.find(first_row_ + row);
    return positions == rows->second.end() ? std::span<const std::int32_t>() : positions->second;
  }
  bool wants_selection(int /*layer*/) override { return recorded_.has_value(); }
  void on_selection(int layer, std::span<const std::int32_t> counts,
                    std::span<const std::int32_t> positions) override {
    for (std::size_t row = 0; row < counts.size(); ++row) {
      const int query = first_row_ + static_cast<int>(row);
      if (!wanted_rows_.empty() && !wanted_rows_.contains(query)) continue;
      std::vector<std::int32_t>& to = recorded_->layers[layer][query];
      if (counts[row] >= 0) {
        const auto chosen = positions.subspan(row * top_k_, static_cast<std::size_t>(counts[row]));
        to.assign(chosen.begin(), chosen.end());
      } else {
        to.resize(static_cast<std::size_t>(query) + 1);
        for (int position = 0; position <= query; ++position) to[position] = position;
      }
    }
  }

 private:
  std::size_t top_k_;
  Selections forced_;
  std::optional<Selections> recorded_;
  std::set<int> wanted_rows_;
  int first_row_ = 0, num_rows_ = 0;
};

// Minus the log-probability of `token`.
double surprise(std::span<const float> logits, TokenId token) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit - top));
  return std::log(total) - static_cast<double>(logits[token] - top);
}

Result<std::vector<TokenId>> tokens_of(const EvalFlags& flags) {
  if (!flags.tokens.empty()) return read_tokens(flags.tokens);
  ASSIGN_OR_RETURN(const std::filesystem::path directory, model_directory(flags.model.model));
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::load(directory / "tokenizer.json"));
  ASSIGN_OR_RETURN(const std::string text, read_input(flags.text));
  std::vector<TokenId> tokens = tokenizer.encode(text);
  ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::load(directory));
  tokens.insert(tokens.begin(), config.bos_token_id);
  return tokens;
}

// Runs all chunks; calls fn(row, logits) for every row in order.
template <typename Fn>
Status run_chunks(Runner& runner, std::span<const TokenId> tokens, int chunk, StepHooks& hooks,
                  const Fn& fn) {
  KvSequence sequence(runner.kv_pool());
  const int num_tokens = static_cast<int>(tokens.size());
  ProgressBar progress("evaluating", ProgressBar::Unit::kTokens);
  for (int begin = 0; begin < num_tokens; begin += chunk) {
    const int num_rows = std::min(chunk, num_tokens - begin);
    const Segment segment{&sequence, 0, num_rows, chunk == 1 ? Purpose::kDecode : Purpose::kPrefill,
                          Logits::kAll};
    ASSIGN_OR_RETURN(const ForwardPtr forward,
                     runner.run({tokens.subspan(static_cast<std::size_t>(begin),
                                                static_cast<std::size_t>(num_rows)),
                                 {&segment, 1},
                                 &hooks}));
    const RowsView logits = forward->logits();
    for (int row = 0; row < num_rows; ++row) RETURN_IF_ERROR(fn(begin + row, logits.row(row)));
    progress.update(begin + num_rows, num_tokens);
  }
  return {};
}

Result<int> run(EvalFlags& flags) {
  if (flags.tokens.empty() == flags.text.empty()) {
    return Error(ErrorCode::kUsage, "give either --tokens FILE or --text FILE");
  }
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, tokens_of(flags));
  const int num_tokens = static_cast<int>(tokens.size());
  constexpr int kTextChunk = 256;
  const int chunk = flags.chunk > 0 ? flags.chunk : flags.tokens.empty() ? kTextChunk : num_tokens;
  flags.model.ctx = num_tokens;
  ASSIGN_OR_RETURN(const LoadedModel model,
                   load_model(flags.model, {.prefill_rows = chunk, .logit_rows = chunk}));
  const ModelConfig& config = model.engine->config();

  std::optional<TraceForcer> forcer;
  std::optional<TraceRecorder> routes;
  SelectionHooks selections(config.index_topk);
  if (!flags.force_routes.empty()) {
    ASSIGN_OR_RETURN(RoutingTrace trace, read_routes(flags.force_routes, config, num_tokens));
    forcer.emplace(std::move(trace));
  }
  if (!flags.force_selected.empty()) {
    ASSIGN_OR_RETURN(Selections forced, read_selections(flags.force_selected, config, num_tokens));
    selections.force(std::move(forced));
  }
  if (!flags.routes.empty()) {
    constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();
    routes.emplace(config, "", TraceRecorder::Options{true, 0, kAll});
  }
  if (!flags.selected.empty()) selections.record(flags.rows);
  HookChain hooks{forcer ? &*forcer : nullptr, routes ? &*routes : nullptr, &selections,
                  model.record->recorder()};

  std::optional<NpyWriter> logits_file;
  if (!flags.logits.empty()) {
    ASSIGN_OR_RETURN(logits_file, NpyWriter::create(flags.logits, num_tokens, config.vocab_size));
  }
  double total_surprise = 0.0;
  RETURN_IF_ERROR(run_chunks(*model.runner, tokens, chunk, hooks,
                             [&](int row, std::span<const float> logits) -> Status {
                               if (row + 1 < num_tokens)
                                 total_surprise += surprise(logits, tokens[row + 1]);
                               return logits_file ? logits_file->append(logits) : Status();
                             }));
  if (logits_file) RETURN_IF_ERROR(logits_file->close());
  if (!flags.routes.empty()) {
    RETURN_IF_ERROR(write_routes(flags.routes, routes->trace()));
  }
  if (!flags.selected.empty())
    RETURN_IF_ERROR(write_selections(flags.selected, selections.recorded()));
  const double mean = num_tokens > 1 ? total_surprise / (num_tokens - 1) : 0.0;
  fmt::print("{{\"tokens\": {}, \"mean_nll\": {:.6f}, \"perplexity\": {:.6f}}}\n", num_tokens, mean,
             std::exp(mean));
  return 0;
}

}  // namespace

Command add_eval(CLI::App& program) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* app = program.add_subcommand("eval",
                                         "Runs token ids (or a text) through the model: logits, "
                                         "chosen experts, selected positions, perplexity");
  add_model_argument(*app, flags->model);
  auto* tokens = app->add_option("--tokens", flags->tokens, "JSON array of token ids");
  app->add_option("--text", flags->text,
                  "Text file, tokenised with the model's tokenizer, BOS in front")
      ->excludes(tokens);
  app->add_option("--logits", flags->logits, "Write logits as .npy, float32 [tokens, vocabulary]");
  app->add_option("--routes", flags->routes, "Write chosen experts and weights as JSON");
  auto* selected =
      app->add_option("--selected", flags->selected, "Write the positions DSA selected as JSON");
  as_list(app->add_option("--rows", flags->rows, "Rows to list with --selected (default: all)"))
      ->needs(selected);
  app->add_option("--chunk", flags->chunk, "Tokens a pass; 1: decoding (default: all in one pass)")
      ->check(CLI::PositiveNumber);
  app->add_option("--force-routes", flags->force_routes,
                  "Take the experts of this routes file or routing trace instead of the router's");
  app->add_option("--force-selected", flags->force_selected,
                  "Take the selections of this file where it lists them");
  add_model_flags(*app, flags->model);
  return {app, [flags] { return run(*flags); }};
}

}  // namespace stoker::tools
