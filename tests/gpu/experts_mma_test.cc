// Routed experts on tensor cores: as near to the exact products as BF16 is, and the same for a row
// whatever stands beside it.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "quant/defined_arithmetic.h"
#include "quant/expert_block.h"
#include "tests/gpu/cuda_test.h"
#include "tests/gpu/expert_matrices.h"

namespace stoker {
namespace {

constexpr QuantSpec kSpecs[] = {{QuantFormat::kF8E4m3B128, 128}, {QuantFormat::kInt8, 128},
                                {QuantFormat::kInt4, 32},        {QuantFormat::kInt4, 64},
                                {QuantFormat::kInt4, 128},       {QuantFormat::kBf16, 128}};

struct Shape {
  std::int64_t hidden_size, inter_size;
};
// Several blocks of an expert; partial tiles, pairs of tiles, units, stages and groups; fewer
// columns than a block has warps. The last is not for tensor cores.
constexpr Shape kShapes[] = {{512, 272}, {200, 88}, {1096, 40}, {8, 16}, {130, 75}};

// Of a row's norm. BF16 rounds gate, up, hidden and output, and the weights of prefill: half a
// place is 2^-9 each time, and SiLU makes more of it where gates are below zero.
constexpr double kTolerance = 0x1p-6;

class CudaExpertsMma : public CudaTest {
 protected:
  struct Use {
    std::vector<std::int32_t> rows;
    int num_decode = 0;
  };
  struct Outputs {
    Values hidden, out;  // by slot
  };

  void make(bool fast_experts) {
    CudaBackendOptions options;
    options.activations = activation;
    options.staging_bytes = 4096;  // tables take several pieces
    options.fast_experts = fast_experts;
    auto made = make_cuda_backend(options);
    CHECK(made.ok(), "{}", made.error().message());
    backend = std::move(made).value();
  }

  // Experts of random weights, of whose bytes only bits of the mask are left, one for each use to
  // come.
  void make_experts(const QuantSpec& spec, const Shape& shape, int count,
                    std::byte code_mask = std::byte{0xff}) {
    spec_ = spec;
    shape_ = shape;
    experts_.clear();
    Random random(21);
    const quant::ExpertBlocks layout(shape.hidden_size, shape.inter_size, spec);
    for (int e = 0; e < count; ++e) {
      Expert& expert = experts_.emplace_back();
      const QuantFormat format = source_format(spec);
      HostMatrix gate = random.matrix(format, shape.inter_size, shape.hidden_size);
      HostMatrix up = random.matrix(format, shape.inter_size, shape.hidden_size);
      HostMatrix down = random.matrix(format, shape.hidden_size, shape.inter_size);
      for (HostMatrix* const matrix : {&gate, &up, &down}) {
        for (std::byte& byte : matrix->payload) byte &= code_mask;
      }
      expert.blocks.resize(static_cast<std::size_t>(layout.expert_bytes()));
      for (int b = 0; b < layout.num_blocks(); ++b) {
        layout.write(b, gate.view, up.view, down.view,
                     expert.blocks.data() + layout.block(b).offset);
      }
      expert.gate = in_tile16(gate, spec);
      expert.up = in_tile16(up, spec);
      expert.down = in_tile16(down, spec);
    }
  }

  // What the backend makes of the uses, one expert each, whose slots lie `gap` apart.
  Outputs run(const Values& x, const std::vector<Use>& wanted, bool on_device = true, int gap = 0) {
    const quant::ExpertBlocks layout(shape_.hidden_size, shape_.inter_size, spec_);
    std::vector<Tensor> resident;
    std::vector<ExpertUse> uses;
    std::vector<ExpertPart> parts;
    int num_slots = gap;
    for (std::size_t e = 0; e < wanted.size(); ++e) {
      const std::byte* base = experts_[e].blocks.data();
      if (on_device) {
        resident.push_back(empty(DType::kU8, 1, layout.expert_bytes()));
        backend->copy_in(resident.back().view(), base);
        expect_fine();
        base = static_cast<const std::byte*>(resident.back().view().data);
      }
      for (int b = 0; b < layout.num_blocks(); ++b) {
        parts.push_back(
            layout.part(b, base + layout.block(b).offset, on_device ? backend->device() : kHost));
        parts.back().use = static_cast<int>(e);
      }
      uses.push_back(
          {static_cast<int>(e) * 2, wanted[e].rows, {}, wanted[e].num_decode, num_slots, false});
      num_slots += static_cast<int>(wanted[e].rows.size()) + gap;
    }
    const TestStep step({{static_cast<int>(x.rows), static_cast<int>(x.rows)}});
    begin(step);
    const Tensor device_x = upload(x, activation);
    const Tensor hidden = empty(activation, num_slots, shape_.inter_size);
    const Tensor out = empty(activation, num_slots, shape_.hidden_size);
    backend->experts(step.view, {device_x.view(), hidden.view(), out.view(), uses, parts});
    expect_fine();
    slots_.clear();
    for (const ExpertUse& use : uses) slots_.push_back(use.slot_begin);
    Outputs outputs{download(hidden.view()), download(out.view())};
    if (on_device) {  // in runs of blocks, too
      const Tensor run_hidden = empty(activation, num_slots, shape_.inter_size);
      const Tensor run_out = empty(activation, num_slots, shape_.hidden_size);
      backend->experts(step.view,
                       {device_x.view(), run_hidden.view(), run_out.view(), uses, in_runs(parts)});
      expect_fine();
      EXPECT_EQ(download(run_hidden.view()).data, outputs.hidden.data);
      EXPECT_EQ(download(run_out.view()).data, outputs.out.data);
    }
    return outputs;
  }

  // That every slot holds what its row and expert come to, and others nothing.
  void expect_right(const Values& x, const std::vector<Use>& uses, const Outputs& got) {
    std::vector<bool> used(static_cast<std::size_t>(got.out.rows));
    for (std::size_t e = 0; e < uses.size(); ++e) {
      const Expert& expert = experts_[e];
      const Values gate = decoded(expert.gate), up = decoded(expert.up),
                   down = decoded(expert.down);
      for (std::size_t i = 0; i < uses[e].rows.size(); ++i) {
        const std::int64_t slot = slots_[e] + static_cast<int>(i);
        used[static_cast<std::size_t>(slot)] = true;
        SCOPED_TRACE(fmt::format("expert {} row {} of {}", e, i, uses[e].rows.size()));
        std::vector<double> hidden, out;
        const float* const row = x.row(uses[e].rows[i]);
        for (std::int64_t r = 0; r < gate.rows; ++r) {
          const double g = dot(gate, r, row);
          hidden.push_back(g / (1.0 + std::exp(-g)) * dot(up, r, row));
        }
        expect_near_row(hidden, got.hidden.row(slot));
        for (std::int64_t r = 0; r < down.rows; ++r) {
          out.push_back(dot(down, r, got.hidden.row(slot)));
        }
        expect_near_row(out, got.out.row(slot));
        if (HasFailure()) return;
      }
    }
    for (std::int64_t slot = 0; slot < got.out.rows; ++slot) {
      if (used[static_cast<std::size_t>(slot)]) continue;
      for (std::int64_t c = 0; c < got.out.cols; ++c) {
        ASSERT_EQ(got.out.at(slot, c), 0.0f) << "slot " << slot << " is nobody's";
      }
    }
  }

  static void expect_same_row(const Values& expected, std::int64_t row, const Values& got,
                              std::int64_t at) {
    for (std::int64_t c = 0; c < got.cols; ++c) {
      ASSERT_EQ(f32_to_bits(expected.at(row, c)), f32_to_bits(got.at(at, c)))
          << "column " << c << ": " << expected.at(row, c) << " and " << got.at(at, c);
    }
  }

  // `count` ascending rows of `num_rows`, with gaps where there is room for them.
  static std::vector<std::int32_t> some_rows(int count, int num_rows, int shift) {
    std::vector<std::int32_t> rows;
    const int step = num_rows / count;
    for (int i = 0; i < count; ++i) rows.push_back(i * step + shift % step);
    return rows;
  }

  std::vector<int> slots_;  // of the last run

 private:
  struct Expert {
    HostMatrix gate, up, down;
    std::vector<std::byte> blocks;
  };

  static Values decoded(const HostMatrix& matrix) {
    Values values(matrix.view.rows, matrix.view.cols);
    for (std::int64_t r = 0; r < values.rows; ++r) {
      for (std::int64_t c = 0; c < values.cols; ++c) {
        values.at(r, c) = quant::element_at(matrix.view, r, c) * quant::scale_at(matrix.view, r, c);
      }
    }
    return values;
  }
  static double dot(const Values& w, std::int64_t r, const float* x) {
    double sum = 0.0;
    for (std::int64_t c = 0; c < w.cols; ++c) sum += double{w.at(r, c)} * double{x[c]};
    return sum;
  }
  static void expect_near_row(const std::vector<double>& expected, const float* got) {
    double wrong = 0.0, size = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << "column " << i << ": " << got[i];
      wrong += (expected[i] - got[i]) * (expected[i] - got[i]);
      size += expected[i] * expected[i];
    }
    EXPECT_LE(std::sqrt(wrong), kTolerance * std::sqrt(size) + 1e-30);
  }

  QuantSpec spec_;
  Shape shape_{};
  std::vector<Expert> experts_;
};

TEST_P(CudaExpertsMma, FewRows) {
  make(true);
  constexpr int kRows = 40;
  for (const QuantSpec& spec : kSpecs) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(
          fmt::format("{} {} {}", quant_spec_name(spec), shape.hidden_size, shape.inter_size));
      const Values x = Random(22).values(kRows, shape.hidden_size, activation, 0.2f);
      std::vector<Use> uses;
      for (const int count : {1, 2, 8, 9, 15, 16, 17}) {
        uses.push_back({some_rows(count, kRows, 1), count});
      }
      make_experts(spec, shape, static_cast<int>(uses.size()));
      expect_right(x, uses, run(x, uses, true, 1));
      if (HasFailure()) return;
    }
  }
}

TEST_P(CudaExpertsMma, ManyRows) {
  constexpr int kRows = 310;
  for (const QuantSpec& spec : kSpecs) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(
          fmt::format("{} {} {}", quant_spec_name(spec), shape.hidden_size, shape.inter_size));
      const Values x = Random(23).values(kRows, shape.hidden_size, activation, 0.2f);
      std::vector<Use> uses;
      for (const int count : {1, 2, 15, 16, 17, 32, 33, 65, 100, 128, 129, 300}) {
        uses.push_back({some_rows(count, kRows, 2), 0});
      }
      make_experts(spec, shape, static_cast<int>(uses.size()));
      expect_right(x, uses, run(x, uses, true, 1));
      if (HasFailure()) return;
    }
  }
}

TEST_P(CudaExpertsMma, InHostMemory) {
  make(true);
  const Values x = Random(24).values(20, 512, activation, 0.2f);
  const std::vector<Use> uses = {{{0, 3, 19}, 1}, {{2}, 1}, {some_rows(18, 20, 0), 0}};
  for (const QuantSpec& spec : kSpecs) {
    SCOPED_TRACE(quant_spec_name(spec));
    make_experts(spec, {512, 272}, 3);
    expect_right(x, uses, run(x, uses, false));
  }
}

// One call in many is timed: of experts that are here how long they were computed, of others how
// long they were copied.
TEST_P(CudaExpertsMma, SaysWhatExpertsTook) {
  make(true);
  const Values x = Random(24).values(4, 512, activation, 0.2f);
  make_experts({QuantFormat::kInt4, 64}, {512, 272}, 2);
  const std::vector<Use> uses = {{{0, 3}, 2}, {{2}, 1}};
  const auto timing_of = [&](bool on_device) {
    ExpertTiming total;
    for (int i = 0; i < 70; ++i) {
      run(x, uses, on_device);
      const std::optional<ExpertTiming> timing = backend->take_expert_timing();
      if (!timing) continue;
      total.num_experts += timing->num_experts;
      total.num_rows += timing->num_rows;
      total.compute_us += timing->compute_us;
      total.upload_bytes += timing->upload_bytes;
      total.upload_us += timing->upload_us;
    }
    return total;
  };
  const ExpertTiming here = timing_of(true);
  EXPECT_GE(here.num_experts, 2 * 2);
  EXPECT_LE(here.num_experts, 2 * 140 / 20);
  EXPECT_EQ(here.num_rows, here.num_experts / 2 * 3);
  EXPECT_GT(here.compute_us, 0.0);
  EXPECT_EQ(here.upload_bytes, 0);
  const ExpertTiming away = timing_of(false);
  EXPECT_EQ(away.compute_us, 0.0);
  EXPECT_GT(away.upload_bytes, 0);
  EXPECT_GT(away.upload_us, 0.0);
}

// Parts of an expert, and rows of prompts, tell nothing.
TEST_P(CudaExpertsMma, TimesWholeExpertsOnly) {
  make(true);
  const Values x = Random(24).values(4, 512, activation, 0.2f);
  make_experts({QuantFormat::kInt4, 64}, {512, 272}, 1);
  for (int i = 0; i < 40; ++i) {
    run(x, {{{0, 3}, 1}});
    EXPECT_FALSE(backend->take_expert_timing());
  }
}

// Longer than rings: every warp has several chunks of several pairs, and a use several blocks.
TEST_P(CudaExpertsMma, PublishedDimensions) {
  make(true);
  const Values x = Random(25).values(70, 7168, activation, 0.2f);
  const std::vector<Use> uses = {{{5}, 1}, {some_rows(70, 70, 0), 3}};
  for (const QuantSpec& spec : {kSpecs[0], kSpecs[3]}) {
    SCOPED_TRACE(quant_spec_name(spec));
    make_experts(spec, {7168, 256}, 2);
    expect_right(x, uses, run(x, uses));
  }
}

// More tasks than a launch takes; blocks of threads begin within tasks. A task's last tile is not
// whole, and of down alone in its pair.
TEST_P(CudaExpertsMma, ManyTasksAndPartialPairs) {
  make(true);
  constexpr int kExperts = 90, kRows = 30;
  for (const QuantSpec& spec : kSpecs) {
    for (const Shape& shape : {Shape{72, 104}, Shape{264, 40}}) {
      SCOPED_TRACE(
          fmt::format("{} {} {}", quant_spec_name(spec), shape.hidden_size, shape.inter_size));
      const Values x = Random(28).values(kRows, shape.hidden_size, activation, 0.2f);
      std::vector<Use> uses;  // of four tasks, or one
      for (int e = 0; e < kExperts; ++e) {
        const int count = e % 10 == 9 ? 1 + e / 20 : 25 + e % 6;
        uses.push_back({some_rows(count, kRows, e), count});
      }
      make_experts(spec, shape, kExperts);
      expect_right(x, uses, run(x, uses, true, 1));
      if (HasFailure()) return;
    }
  }
}

// FP8 weights whose exponents are all zero.
TEST_P(CudaExpertsMma, SubnormalCodes) {
  make(true);
  const Values x = Random(29).values(40, 512, activation, 0.2f);
  const std::vector<Use> uses = {{some_rows(3, 40, 0), 3}, {some_rows(20, 40, 0), 0}};
  make_experts(kSpecs[0], {512, 272}, 2, std::byte{0x87});
  expect_right(x, uses, run(x, uses));
}

// A row of decode, verify or prefill has the same bits alone as among any others.
TEST_P(CudaExpertsMma, OtherRowsTouchNoBit) {
  make(true);
  constexpr int kRows = 150;
  for (const QuantSpec& spec : kSpecs) {
    SCOPED_TRACE(quant_spec_name(spec));
    const Shape shape{456, 104};
    make_experts(spec, shape, 1);
    const Values x = Random(26).values(kRows, shape.hidden_size, activation, 0.2f);
    for (const bool decode : {true, false}) {
      SCOPED_TRACE(decode ? "decode" : "prefill");
      std::map<int, Outputs> alone;
      for (const int row : {0, 7, 31, 64, 149}) {
        alone[row] = run(x, {{{row}, decode ? 1 : 0}});
      }
      for (const std::vector<std::int32_t>& rows : {std::vector<std::int32_t>{0, 7},
                                                    {0, 1, 7, 9, 31, 40, 50, 64, 149},
                                                    some_rows(kRows, kRows, 0),
                                                    {2, 3, 149}}) {
        const Outputs got = run(x, {{rows, decode ? static_cast<int>(rows.size()) : 0}});
        for (std::size_t i = 0; i < rows.size(); ++i) {
          const auto expected = alone.find(rows[i]);
          if (expected == alone.end()) continue;
          SCOPED_TRACE(fmt::format("row {} of {}", rows[i], rows.size()));
          expect_same_row(expected->second.hidden, 0, got.hidden, static_cast<int>(i));
          expect_same_row(expected->second.out, 0, got.out, static_cast<int>(i));
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Rows of two purposes of one expert: each as if the others were not there; those of decode in the
// arithmetic that the option says.
TEST_P(CudaExpertsMma, DecodeBesidePrefill) {
  constexpr int kRows = 60;
  const Shape shape{456, 104};
  const Values x = Random(27).values(kRows, shape.hidden_size, activation, 0.2f);
  const std::vector<std::int32_t> decode = {1, 2, 50, 51, 55},
                                  prefill = {0,  5,  6,  7,  8,  9,  10, 20, 30, 31,
                                             32, 33, 34, 35, 36, 40, 41, 42, 59};
  std::vector<std::int32_t> both = decode;
  both.insert(both.end(), prefill.begin(), prefill.end());
  const int num_decode = static_cast<int>(decode.size());
  for (const QuantSpec& spec : kSpecs) {
    for (const bool fast : {false, true}) {
      SCOPED_TRACE(fmt::format("{}{}", quant_spec_name(spec), fast ? " fast" : ""));
      make(fast);
      make_experts(spec, shape, 1);
      const Outputs decoded = run(x, {{decode, num_decode}}), prefilled = run(x, {{prefill, 0}});
      const Outputs got = run(x, {{both, num_decode}});
      expect_right(x, {{both, num_decode}}, got);
      for (int i = 0; i < static_cast<int>(both.size()) && !HasFailure(); ++i) {
        const Outputs& expected = i < num_decode ? decoded : prefilled;
        const int row = i < num_decode ? i : i - num_decode;
        SCOPED_TRACE(fmt::format("row {}", i));
        expect_same_row(expected.hidden, row, got.hidden, i);
        expect_same_row(expected.out, row, got.out, i);
      }
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaExpertsMma, testing::Values(kPlainTypes[0]),
                         types_of_test);

}  // namespace
}  // namespace stoker
