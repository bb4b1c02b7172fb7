// Decoding in modelled time: routing that behaves like a trained router's, a drive and a processor
// that are numbers, and the real manager between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "prefetch/expert_manager.h"
#include "prefetch/modelled_reader.h"
#include "prefetch/null_arena.h"

namespace stoker::test {

// Experts that are sizes.
class SizedSource final : public ExpertSource {
 public:
  SizedSource(int num_gate_up, int num_down, std::int64_t block_bytes)
      : num_gate_up_(num_gate_up), num_down_(num_down), block_bytes_(block_bytes) {}
  int num_blocks(int /*layer*/) const override { return num_gate_up_ + num_down_; }
  std::int64_t expert_bytes(int layer) const override { return num_blocks(layer) * block_bytes_; }
  std::int64_t block_offset(int /*layer*/, int block) const override {
    return block * block_bytes_;
  }
  std::int64_t block_bytes(int /*layer*/, int /*block*/) const override { return block_bytes_; }
  ExpertPart part(int /*layer*/, int block, const std::byte* /*bytes*/,
                  DeviceId /*device*/) const override {
    ExpertPart part;
    part.half = block < num_gate_up_ ? ExpertHalf::kGateUp : ExpertHalf::kDown;
    part.row_begin = block;
    part.num_rows = 1;
    return part;
  }
  Status land(ExpertId /*id*/, int /*block*/, int /*replica*/,
              std::byte* /*bytes*/) const override {
    return {};
  }
  Status read(ExpertId /*id*/, std::byte* /*dst*/) const override {
    return Error(ErrorCode::kUnsupported, "sizes have no bytes");
  }

 private:
  int num_gate_up_, num_down_;
  std::int64_t block_bytes_;
};

// A router whose scores drift from token to token around what each expert is liked for, and a gate
// that sees them through noise. With the defaults: a third of a token's experts are those of the
// token before, and the gate's first eight hold three quarters of the true ones.
class DriftingRouter {
 public:
  struct Options {
    int num_layers = 12, num_experts = 256, top_k = 8;
    float keep = 0.62f;        // correlation of a score with the one a token earlier
    float liking = 0.35f;      // spread of what is constant
    float gate_noise = 0.30f;  // one layer ahead
    float far_noise = 0.40f;   // two
  };
  DriftingRouter(const Options& options, unsigned seed)
      : options_(options),
        random_(seed),
        gate_random_(seed + 1),
        liking_(size()),
        drift_(size()),
        score_(size()) {
    for (float& liking : liking_) liking = options_.liking * normal_(random_);
    for (float& drift : drift_) drift = normal_(random_);
    next_token();
  }

  void next_token() {
    const float fresh = std::sqrt(1.0f - options_.keep * options_.keep);
    for (std::size_t i = 0; i < size(); ++i) {
      drift_[i] = options_.keep * drift_[i] + fresh * normal_(random_);
      score_[i] = liking_[i] + drift_[i];
    }
  }
  // The layer's true choice, ascending.
  std::vector<std::int32_t> chosen(int layer) {
    auto experts = ranked(layer, 0.0f, options_.top_k);
    std::sort(experts.begin(), experts.end());
    return experts;
  }
  // What a gate `lead` layers before says, best first.
  std::vector<std::int32_t> guessed(int layer, int lead, int count) {
    return ranked(layer, lead == 1 ? options_.gate_noise : options_.far_noise, count);
  }
  const Options& options() const { return options_; }

 private:
  std::size_t size() const {
    return static_cast<std::size_t>(options_.num_layers) *
           static_cast<std::size_t>(options_.num_experts);
  }
  std::vector<std::int32_t> ranked(int layer, float noise, int count) {
    const auto num_experts = static_cast<std::size_t>(options_.num_experts);
    std::vector<float> seen(num_experts);
    for (std::size_t i = 0; i < num_experts; ++i) {
      seen[i] = score_[static_cast<std::size_t>(layer) * num_experts + i] +
                (noise > 0.0f ? noise * normal_(gate_random_) : 0.0f);
    }
    std::vector<std::int32_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](int a, int b) { return seen[a] > seen[b]; });
    order.resize(static_cast<std::size_t>(count));
    return order;
  }

  Options options_;
  std::mt19937 random_, gate_random_;  // the gates' noise leaves the routing as it is
  std::normal_distribution<float> normal_;
  std::vector<float> liking_, drift_, score_;
};

struct DecodeModelOptions {
  DriftingRouter::Options router{};
  unsigned seed = 1;
  double cached = 0.25;  // share of the experts that have a slot
  double bytes_per_second = 7e9;
  std::int64_t max_speculative_bytes = std::int64_t{2} << 20;
  std::int64_t attention_us = 1500, expert_us = 300, gate_us = 40;
  double prefill_row_us = 20;
  bool gates_know_nothing = false;  // guesses are noise
  ExpertManagerOptions manager{};
};

class DecodeModel {
 public:
  static constexpr int kGateUp = 14, kDown = 8;
  static constexpr std::int64_t kBlockBytes = std::int64_t{1} << 20;

  explicit DecodeModel(const DecodeModelOptions& options)
      : options_(options),
        router_(options.router, options.seed),
        noise_(DriftingRouter::Options(options.router), options.seed + 1000),
        source_(kGateUp, kDown, kBlockBytes),
        arena_(static_cast<int>(options.cached * options.router.num_layers *
                                options.router.num_experts),
               source_.expert_bytes(0)),
        reader_(source_, clock_, reader_options()),
        manager_(ExpertManager::create(layers(), source_, reader_, arena_, clock_, options.manager)
                     .value()) {}

  // Decodes and returns microseconds per token.
  double decode(int num_tokens) {
    const std::int64_t begin_us = clock_.now_us();
    for (int token = 0; token < num_tokens; ++token) {
      for (int layer = 0; layer < options_.router.num_layers; ++layer) run_layer(layer);
      router_.next_token();
      noise_.next_token();
    }
    return static_cast<double>(clock_.now_us() - begin_us) / num_tokens;
  }

  // Takes in a prompt, all rows of a layer at once, and returns microseconds. Rows cost
  // `prefill_row_us` per layer in attention and again for each expert they choose.
  double prefill(int num_rows) {
    const std::int64_t begin_us = clock_.now_us();
    const auto num_layers = static_cast<std::size_t>(options_.router.num_layers);
    std::vector<std::vector<std::vector<std::int32_t>>> routes(num_layers);  // [layer][row]
    std::vector<std::vector<std::int32_t>> guesses(num_layers);              // [layer][row, ranked]
    const int num_ranked = std::max(manager_->num_ranked_guesses(), 1);
    for (int row = 0; row < num_rows; ++row) {
      for (std::size_t layer = 0; layer < num_layers; ++layer) {
        routes[layer].push_back(router_.chosen(static_cast<int>(layer)));
        const auto guessed = router_.guessed(static_cast<int>(layer), 1, num_ranked);
        guesses[layer].insert(guesses[layer].end(), guessed.begin(), guessed.end());
      }
      router_.next_token();
      noise_.next_token();
    }
    for (int layer = 0; layer < options_.router.num_layers; ++layer) {
      clock_.advance(static_cast<std::int64_t>(num_rows * options_.prefill_row_us));
      std::vector<int> num_rows_of(static_cast<std::size_t>(options_.router.num_experts));
      for (const auto& chosen : routes[layer]) {
        for (const int expert : chosen) ++num_rows_of[expert];
      }
      const auto next = static_cast<std::size_t>(layer) + 1;
      const bool hint = manager_->num_ranked_guesses() > 0 && next < num_layers;
      run(layer, num_rows_of, options_.prefill_row_us, [&] {
        if (hint) manager_->hint({layer, layer + 1, 1, num_rows, num_ranked, guesses[next]});
      });
    }
    return static_cast<double>(clock_.now_us() - begin_us);
  }

  ExpertManager& manager() { return *manager_; }
  ModelledReader& reader() { return reader_; }
  LayerCounters total() const {
    LayerCounters total;
    for (int layer = 0; layer < options_.router.num_layers; ++layer)
      total += manager_->counters(layer);
    return total;
  }

 private:
  ModelledReaderOptions reader_options() const {
    ModelledReaderOptions reader;
    reader.max_speculative_bytes = options_.max_speculative_bytes;
    reader.drives = {
        {.bytes_per_second = options_.bytes_per_second, .latency_us = 100, .depth = 8}};
    return reader;
  }
  std::vector<ExpertLayer> layers() const {
    std::vector<ExpertLayer> layers;
    for (int layer = 0; layer < options_.router.num_layers; ++layer)
      layers.push_back({layer, options_.router.num_experts, options_.router.top_k});
    return layers;
  }

  void run_layer(int layer) {
    clock_.advance(options_.attention_us);
    std::vector<int> num_rows_of(static_cast<std::size_t>(options_.router.num_experts));
    for (const int expert : router_.chosen(layer)) num_rows_of[expert] = 1;
    run(layer, num_rows_of, static_cast<double>(options_.expert_us), [&] { look_ahead(layer); });
  }

  // A demand: an expert takes `row_us` for each of its rows.
  template <typename Hint>
  void run(int layer, const std::vector<int>& num_rows_of, double row_us, Hint hint) {
    std::vector<ExpertUse> uses;
    rows_.resize(100'000);
    for (std::size_t expert = 0; expert < num_rows_of.size(); ++expert) {
      if (num_rows_of[expert] == 0) continue;
      ExpertUse use;
      use.expert = static_cast<int>(expert);
      use.rows = {rows_.data(), static_cast<std::size_t>(num_rows_of[expert])};
      uses.push_back(use);
    }
    const ExpertSetPtr set = manager_->demand(layer, uses).value();
    hint();
    std::vector<ExpertPart> parts(64);
    while (!set->exhausted()) {
      const std::size_t ready = set->take_ready(parts);
      double us = 0.0;
      for (std::size_t i = 0; i < ready; ++i) {
        parts[i].passes_guard();
        us += row_us * static_cast<double>(uses[parts[i].use].rows.size()) / (kGateUp + kDown);
      }
      if (ready > 0) {
        clock_.advance(std::llround(us));
      } else if (set->waits_for_slots()) {
        set->retire_taken();
      } else if (!set->exhausted()) {
        CHECK(reader_.next_event_us() != ModelledReader::kNever, "nothing is under way");
        clock_.advance_to(reader_.next_event_us());
      }
    }
  }

  void look_ahead(int layer) {
    const int num_ranked = manager_->num_ranked_guesses();
    if (num_ranked == 0) return;
    for (int lead = 1; lead <= 2 && layer + lead < options_.router.num_layers; ++lead) {
      clock_.advance(options_.gate_us);
      auto& gate = options_.gates_know_nothing ? noise_ : router_;
      const auto experts = gate.guessed(layer + lead, lead, num_ranked);
      manager_->hint({layer, layer + lead, lead, 1, num_ranked, experts});
    }
  }

  DecodeModelOptions options_;
  ManualClock clock_;
  DriftingRouter router_, noise_;
  SizedSource source_;
  NullArena arena_;
  ModelledReader reader_;
  std::unique_ptr<ExpertManager> manager_;
  std::vector<std::int32_t> rows_;
};

}  // namespace stoker::test
