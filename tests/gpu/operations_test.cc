// Everything but products and attention, against formulas in double or the router's definition.
#include <gtest/gtest.h>

#include <cstring>

#include "cpu/router.h"
#include "quant/defined_arithmetic.h"
#include "tests/gpu/cuda_test.h"

namespace stoker {
namespace {

constexpr float kEps = 1e-6f;

class CudaOperations : public CudaTest {
 protected:
  Tensor vector(const Values& values) {
    auto tensor = backend->adopt_vector(
        make_view(const_cast<float*>(values.data.data()), DType::kF32, 1, values.cols));
    CHECK(tensor.ok(), "{}", tensor.error().message());
    return std::move(tensor).value();
  }
};

TEST_P(CudaOperations, RmsNorm) {
  Random random(10);
  const TestStep step({{4, 4}});
  begin(step);
  const Values x = random.values(4, 300, activation), weight = random.values(1, 200);
  const Tensor device_x = upload(x, activation), device_weight = vector(weight);
  const TensorView slice = device_x.view().col_slice(50, 200);
  backend->rms_norm(step.view, slice, device_weight.view(), kEps, slice);
  const Values got = download(device_x.view());
  for (int t = 0; t < 4; ++t) {
    double squares = 0;
    for (int c = 0; c < 200; ++c) squares += double{x.at(t, 50 + c)} * x.at(t, 50 + c);
    const double factor = 1 / std::sqrt(squares / 200 + kEps);
    for (int c = 0; c < 200; ++c) {
      expect_near(x.at(t, 50 + c) * factor * weight.at(0, c), got.at(t, 50 + c), "normed");
    }
    for (int c = 0; c < 50; ++c) EXPECT_EQ(got.at(t, c), x.at(t, c));
    for (int c = 250; c < 300; ++c) EXPECT_EQ(got.at(t, c), x.at(t, c));
  }
}

TEST_P(CudaOperations, AddRmsNormUsesTheUnroundedSum) {
  Random random(11);
  constexpr int kCols = 500;
  const TestStep step({{3, 3}});
  begin(step);
  const Values first = random.values(3, kCols, activation);
  const Values second = random.values(3, kCols, activation);
  const Values weight = random.values(1, kCols);
  const Tensor h = upload(first, activation), residual = empty(activation, 3, kCols);
  const Tensor out = empty(activation, 3, kCols), device_weight = vector(weight);
  const auto check = [&](auto sum) {
    const Values got = download(out.view()), kept = download(residual.view());
    for (int t = 0; t < 3; ++t) {
      double squares = 0;
      for (int c = 0; c < kCols; ++c) squares += double{sum(t, c)} * sum(t, c);
      const double factor = 1 / std::sqrt(squares / kCols + kEps);
      for (int c = 0; c < kCols; ++c) {
        expect_near(sum(t, c) * factor * weight.at(0, c), got.at(t, c), "normed");
        EXPECT_EQ(as_stored(activation, sum(t, c)), kept.at(t, c)) << "residual";
      }
    }
  };
  backend->add_rms_norm(step.view, h.view(), residual.view(), true, device_weight.view(), kEps,
                        out.view());
  check([&](int t, int c) { return first.at(t, c); });
  const Tensor h2 = upload(second, activation);
  backend->add_rms_norm(step.view, h2.view(), residual.view(), false, device_weight.view(), kEps,
                        out.view());
  check([&](int t, int c) { return first.at(t, c) + second.at(t, c); });
}

TEST_P(CudaOperations, LayerNorm) {
  Random random(12);
  const TestStep step({{3, 3}});
  begin(step);
  const Values x = random.values(3, 130, activation, 3.0f);
  const Values weight = random.values(1, 130), bias = random.values(1, 130);
  const Tensor device_x = upload(x, activation);
  const Tensor device_weight = vector(weight), device_bias = vector(bias);
  backend->layer_norm(step.view, device_x.view(), device_weight.view(), device_bias.view(), kEps);
  const Values got = download(device_x.view());
  for (int t = 0; t < 3; ++t) {
    double mean = 0, variance = 0;
    for (int c = 0; c < 130; ++c) mean += x.at(t, c) / 130.0;
    for (int c = 0; c < 130; ++c) variance += std::pow(x.at(t, c) - mean, 2) / 130.0;
    for (int c = 0; c < 130; ++c) {
      const double normal = (x.at(t, c) - mean) / std::sqrt(variance + kEps);
      expect_near(normal * weight.at(0, c) + bias.at(0, c), got.at(t, c), "normed");
    }
  }
}

TEST_P(CudaOperations, Rope) {
  Random random(13);
  constexpr int kHeads = 3, kStride = 12, kOffset = 4, kRope = 8;
  const std::vector<float> inv_freq = {1.0f, 0.1f, 0.01f, 0.001f};
  ASSERT_TRUE(backend->set_rope(inv_freq).ok());
  const TestStep step({{1000, 2}, {3, 3}});
  begin(step);
  for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
    const Values x = random.values(5, kHeads * kStride, activation);
    const Tensor device_x = upload(x, activation);
    backend->rope(step.view, device_x.view(), kHeads, kStride, kOffset, kRope, style);
    Values expected = x;
    for (int t = 0; t < 5; ++t) {
      for (int head = 0; head < kHeads; ++head) {
        for (int i = 0; i < kRope / 2; ++i) {
          const bool interleaved = style == RopeStyle::kInterleaved;
          const int a = head * kStride + kOffset + (interleaved ? 2 * i : i);
          const int b = interleaved ? a + 1 : a + kRope / 2;
          // The angle is an F32 product by definition.
          const double angle = static_cast<float>(step.positions[static_cast<std::size_t>(t)]) *
                               inv_freq[static_cast<std::size_t>(i)];
          const double c = std::cos(angle), s = std::sin(angle);
          expected.at(t, a) = static_cast<float>(x.at(t, a) * c - x.at(t, b) * s);
          expected.at(t, b) = static_cast<float>(x.at(t, a) * s + x.at(t, b) * c);
        }
      }
    }
    const Values got = download(device_x.view());
    for (std::size_t i = 0; i < got.data.size(); ++i) {
      expect_near(expected.data[i], got.data[i], fmt::format("element {}", i));
    }
  }
}

TEST_P(CudaOperations, EmbedScaleAndSilu) {
  Random random(14);
  const TestStep step({{4, 4}}, /*vocab=*/20);
  begin(step);
  const HostMatrix table = random.matrix(QuantFormat::kBf16, 20, 70);
  auto weight = backend->adopt_embedding(table.view);
  ASSERT_TRUE(weight.ok());
  const Tensor out = empty(activation, 4, 70);
  backend->embed(step.view, **weight, out.view());
  const Values embedded = download(out.view());
  for (int t = 0; t < 4; ++t) {
    for (int c = 0; c < 70; ++c) {
      EXPECT_EQ(embedded.at(t, c),
                quant::element_at(table.view, step.tokens[static_cast<std::size_t>(t)], c));
    }
  }
  const Values gate = random.values(4, 70, activation, 4.0f);
  const Values up = random.values(4, 70, activation);
  const Tensor device_gate = upload(gate, activation), device_up = upload(up, activation);
  backend->silu_mul(step.view, device_gate.view(), device_up.view(), device_gate.view());
  const Values hidden = download(device_gate.view());
  const Tensor scaled = upload(up, DType::kF32);
  backend->scale(step.view, scaled.view(), 0.3f);
  const Values got = download(scaled.view());
  for (int t = 0; t < 4; ++t) {
    for (int c = 0; c < 70; ++c) {
      const float expected = quant::silu_defined(gate.at(t, c)) * up.at(t, c);
      EXPECT_EQ(as_stored(activation, expected), hidden.at(t, c));
      EXPECT_EQ(up.at(t, c) * 0.3f, got.at(t, c));
    }
  }
}

TEST_P(CudaOperations, AppendWritesEachRowToItsPlace) {
  Random random(15);
  const TestStep step({{70, 8}, {130, 1}});
  begin(step);
  const Values x = random.values(9, 20, activation);
  const Tensor device_x = upload(x, activation);
  const KvRow row{12, 8}, key{20, 0};
  const Tensor latents = empty(activation, step.cache_rows(), 20);
  const Tensor keys = empty(activation, step.cache_rows(), 20);
  backend->append_latent(step.view, device_x.view(), {latents.view(), row});
  backend->append_index_key(step.view, device_x.view(), {keys.view(), key});
  Values expected(step.cache_rows(), 20);
  for (int t = 0; t < 9; ++t) {
    const std::int64_t place =
        step.cache_row(step.sequence_of(t), step.positions[static_cast<std::size_t>(t)]);
    for (int c = 0; c < 20; ++c) expected.at(place, c) = x.at(t, c);
  }
  EXPECT_EQ(download(latents.view()).data, expected.data);
  EXPECT_EQ(download(keys.view()).data, expected.data);
}

TEST_P(CudaOperations, RouteIsTheRouter) {
  Random random(16);
  RouterSpec grouped;
  grouped.num_experts = 256;
  grouped.top_k = 8;
  grouped.num_groups = 8;
  grouped.top_groups = 4;
  grouped.scaling = 2.5f;
  RouterSpec plain;
  plain.num_experts = 6;
  plain.top_k = 3;
  plain.normalise = false;
  for (const RouterSpec& spec : {grouped, plain}) {
    constexpr int kRows = 7;
    const auto num_choices = static_cast<std::size_t>(kRows * spec.top_k);
    const TestStep step({{kRows, kRows}});
    begin(step);
    Values logits = random.values(kRows, spec.num_experts, DType::kF32, 3.0f);
    for (int e = 0; e < spec.num_experts; ++e) logits.at(0, e) = 0.5f;  // all tie
    const Values bias = random.values(1, spec.num_experts, DType::kF32, 2.0f);
    const Values no_bias(1, spec.num_experts);
    auto forced = backend->allocate_host(DType::kI32, kRows, spec.top_k);
    ASSERT_TRUE(forced.ok());
    const std::span forced_experts(forced->view().row<std::int32_t>(0), num_choices);
    for (std::size_t i = 0; i < num_choices; ++i) {
      forced_experts[i] = static_cast<std::int32_t>(i * 5) % spec.num_experts;
    }
    const Tensor device_logits = upload(logits, DType::kF32);
    auto experts = backend->allocate_host(DType::kI32, kRows, spec.top_k);
    auto weights = backend->allocate_host(DType::kF32, kRows, spec.top_k);
    ASSERT_TRUE(experts.ok() && weights.ok());
    const RouteMailbox mailbox = {{experts->view().row<std::int32_t>(0), num_choices},
                                  {weights->view().row<float>(0), num_choices}};
    for (const Values* b : {&bias, &no_bias}) {
      const Tensor device_bias = vector(*b);
      for (const bool use_forced : {false, true}) {
        RouteParams params{spec, device_logits.view(), device_bias.view(), {}, mailbox};
        if (use_forced) params.forced = forced_experts;
        backend->route(step.view, params);
        expect_fine();
        for (int t = 0; t < kRows; ++t) {
          const auto begin = static_cast<std::size_t>(t * spec.top_k);
          const auto count = static_cast<std::size_t>(spec.top_k);
          std::vector<std::int32_t> chosen(count);
          std::vector<float> chosen_weights(count);
          route_row(spec, {logits.row(t), static_cast<std::size_t>(spec.num_experts)}, b->data,
                    params.forced.empty() ? params.forced : params.forced.subspan(begin, count),
                    chosen, chosen_weights);
          for (std::size_t i = 0; i < count; ++i) {
            EXPECT_EQ(chosen[i], mailbox.experts[begin + i]) << "row " << t << " choice " << i;
            EXPECT_EQ(chosen_weights[i], mailbox.weights[begin + i]) << "row " << t;
          }
        }
      }
    }
  }
}

// By a kernel to pinned memory, and by a copy to any other.
TEST_P(CudaOperations, RowsGoToHostMemory) {
  Random random(18);
  constexpr int kRows = 5, kCols = 64;
  const Tensor x = upload(random.values(kRows, kCols, activation), activation);
  const TensorView views[] = {x.view(), x.view().col_slice(8, 40), x.view().col_slice(3, 21),
                              x.view().row_slice(2, 1), x.view().row_slice(1, 1).col_slice(1, 1)};
  for (const TensorView& view : views) {
    std::vector<std::byte> copied(view.bytes());
    const Tensor pinned = backend->allocate_host(activation, view.rows, view.cols).value();
    backend->copy_out(copied.data(), view);
    backend->copy_out(pinned.view().data, view);
    expect_fine();
    EXPECT_EQ(std::memcmp(copied.data(), pinned.view().data, copied.size()), 0)
        << view.rows << " x " << view.cols;
  }
}

TEST_P(CudaOperations, EventsAreDoneInTheEnd) {
  const TestStep step({{1, 1}});
  begin(step);
  EXPECT_TRUE(backend->done(Event{}));
  const Tensor x = empty(DType::kF32, 1, 8);
  std::vector<Event> events;
  for (int i = 0; i < 1000; ++i) {  // more than a backend keeps
    backend->scale(step.view, x.view(), 2.0f);
    events.push_back(backend->record());
  }
  expect_fine();
  for (const Event event : events) EXPECT_TRUE(backend->done(event));
  auto other = make_cuda_backend({});
  ASSERT_TRUE(other.ok());
  (*other)->wait_for(*backend, events.back());
  EXPECT_TRUE((*other)->finish().ok());
}

TEST_P(CudaOperations, SeveralStepsMayBeAlive) {
  Random random(17);
  const HostMatrix table = random.matrix(QuantFormat::kF32, 50, 8);
  auto weight = backend->adopt_embedding(table.view);
  ASSERT_TRUE(weight.ok());
  const TestStep first({{3, 3}}, 50), second({{5, 5}}, 11);
  begin(first);
  begin(second);
  for (const TestStep* step : {&first, &second, &first}) {
    const Tensor out = empty(DType::kF32, step->num_rows(), 8);
    backend->embed(step->view, **weight, out.view());
    const Values got = download(out.view());
    for (int t = 0; t < step->num_rows(); ++t) {
      EXPECT_EQ(got.at(t, 0),
                quant::element_at(table.view, step->tokens[static_cast<std::size_t>(t)], 0));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaOperations, testing::ValuesIn(kPlainTypes),
                         types_of_test);

}  // namespace
}  // namespace stoker
