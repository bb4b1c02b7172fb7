// Routed experts in the defined arithmetic, wherever their blocks lie, bit for bit what quant says
// they are; and their sum.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "quant/defined_arithmetic.h"
#include "quant/expert_block.h"
#include "tests/gpu/cuda_test.h"
#include "tests/gpu/expert_matrices.h"

namespace stoker {
namespace {

// Three experts of several blocks, one of them for more rows than a task takes.
class CudaExperts : public CudaTest {
 protected:
  // Where the blocks of experts lie when they are computed.
  enum class Place { kDevice, kSlot, kHost, kPinned, kOtherDevice, kMixed };

  struct Expert {
    HostMatrix gate, up, down;
    std::vector<std::byte> blocks;
    Tensor resident;
  };

  // The address and the device of an expert's blocks at `place`.
  std::pair<const std::byte*, DeviceId> put(Expert& expert, Place place) {
    const auto bytes = static_cast<std::int64_t>(expert.blocks.size());
    if (place == Place::kHost) return {expert.blocks.data(), kHost};
    if (place == Place::kSlot) {
      const int slot = num_slots_used_++;
      const std::span<const std::byte> all(expert.blocks);
      const std::size_t half = all.size() / 2;
      slots_->upload(slot, 0, all.first(half));
      const UploadTicket ticket =
          slots_->upload(slot, static_cast<std::int64_t>(half), all.subspan(half));
      while (!slots_->done(ticket)) {
      }
      EXPECT_TRUE(slots_->status().ok());
      return {slots_->slot(slot), slots_->device()};
    }
    Backend& owner = place == Place::kOtherDevice ? *other_ : *backend;
    auto made = place == Place::kPinned ? owner.allocate_host(DType::kU8, 1, bytes)
                                        : owner.allocate(DType::kU8, 1, bytes);
    CHECK(made.ok(), "{}", made.error().message());
    expert.resident = std::move(made).value();
    if (place == Place::kPinned) {
      std::memcpy(expert.resident.view().data, expert.blocks.data(), expert.blocks.size());
    } else {
      owner.copy_in(expert.resident.view(), expert.blocks.data());
      EXPECT_TRUE(owner.finish().ok());
    }
    return {static_cast<const std::byte*>(expert.resident.view().data),
            expert.resident.view().device};
  }

  // What a block of `spec` holds of `source`: integers are quantised.
  static HostMatrix as_held(HostMatrix source, const QuantSpec& spec) {
    return spec.is_integer() ? in_tile16(source, spec) : std::move(source);
  }

  void run(const QuantSpec& spec, std::int64_t hidden_size, std::int64_t inter_size, Place place) {
    Random random(4);
    const quant::ExpertBlocks layout(hidden_size, inter_size, spec);
    slots_.reset();
    num_slots_used_ = 0;
    if (place == Place::kSlot || place == Place::kMixed) {
      auto slots = make_cuda_slots({0, 0, 3, layout.expert_bytes()});
      ASSERT_TRUE(slots.ok()) << slots.error().message();
      slots_ = std::move(slots).value();
    }
    if (place == Place::kOtherDevice) {
      CudaBackendOptions options = options_for(GetParam());
      options.logical = 1;
      other_ = make_backend(options);
    }
    const QuantFormat format = source_format(spec);
    const std::vector<std::vector<std::int32_t>> rows = {{1}, {0, 1, 2, 3, 4}, {2, 4}};
    std::vector<Expert> experts(rows.size());
    std::vector<ExpertUse> uses;
    std::vector<ExpertPart> parts;
    int num_slots = 0;
    for (std::size_t e = 0; e < rows.size(); ++e) {
      Expert& expert = experts[e];
      expert.gate = random.matrix(format, inter_size, hidden_size);
      expert.up = random.matrix(format, inter_size, hidden_size);
      expert.down = random.matrix(format, hidden_size, inter_size);
      expert.blocks.resize(static_cast<std::size_t>(layout.expert_bytes()));
      for (int b = 0; b < layout.num_blocks(); ++b) {
        layout.write(b, expert.gate.view, expert.up.view, expert.down.view,
                     expert.blocks.data() + layout.block(b).offset);
      }
      for (HostMatrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
        *matrix = as_held(std::move(*matrix), spec);
      }
      constexpr Place kMixture[] = {Place::kPinned, Place::kSlot, Place::kHost};
      const auto [base, device] =
          put(expert, place == Place::kMixed ? kMixture[e % std::size(kMixture)] : place);
      for (int b = 0; b < layout.num_blocks(); ++b) {
        parts.push_back(layout.part(b, base + layout.block(b).offset, device));
        parts.back().use = static_cast<int>(e);
      }
      uses.push_back({static_cast<int>(e) * 3,
                      rows[e],
                      {},
                      static_cast<int>(rows[e].size()),
                      num_slots,
                      false});
      num_slots += static_cast<int>(rows[e].size());
    }
    const TestStep step({{5, 5}});
    begin(step);
    const Values x = random.values(5, hidden_size, activation, 0.2f);
    const Tensor device_x = upload(x, activation);
    for (const std::vector<ExpertPart>& given : {parts, in_runs(parts)}) {
      const Tensor hidden = empty(activation, num_slots, inter_size);
      const Tensor out = empty(activation, num_slots, hidden_size);
      backend->experts(step.view, {device_x.view(), hidden.view(), out.view(), uses, given});
      const Values got_hidden = download(hidden.view()), got = download(out.view());
      for (std::size_t e = 0; e < rows.size(); ++e) {
        for (std::size_t i = 0; i < rows[e].size(); ++i) {
          check(experts[e], x.row(rows[e][i]), uses[e].slot_begin + static_cast<int>(i), got_hidden,
                got);
          if (HasFailure()) return;
        }
      }
    }
  }

  void check(const Expert& expert, const float* x, int slot, const Values& hidden,
             const Values& out) {
    std::vector<float> expected(static_cast<std::size_t>(hidden.cols));
    for (std::int64_t r = 0; r < hidden.cols; ++r) {
      const float gate = as_stored(activation, quant::dot_defined(expert.gate.view, r, x));
      const float up = as_stored(activation, quant::dot_defined(expert.up.view, r, x));
      float& h = expected[static_cast<std::size_t>(r)];
      h = as_stored(activation, quant::silu_defined(gate) * up);
      expect_same_bits(h, hidden.at(slot, r), fmt::format("hidden {} of slot {}", r, slot));
    }
    for (std::int64_t r = 0; r < out.cols; ++r) {
      const float value = quant::dot_defined(expert.down.view, r, expected.data());
      expect_same_bits(as_stored(activation, value), out.at(slot, r),
                       fmt::format("output {} of slot {}", r, slot));
    }
  }

  void combine(int num_rows) {
    Random random(5);
    constexpr int kTopK = 3, kHidden = 300;
    const TestStep step({{num_rows, num_rows}});
    begin(step);
    const Values outputs = random.values(num_rows * kTopK, kHidden, activation);
    const Values shared = random.values(num_rows, kHidden, activation);
    std::vector<std::int32_t> slots;
    std::vector<float> weights;
    for (int i = 0; i < num_rows * kTopK; ++i) {
      slots.push_back((i * 4 + 1) % (num_rows * kTopK));
      weights.push_back(random.uniform(0.0f, 1.0f));
    }
    const Tensor device_outputs = upload(outputs, activation),
                 device_shared = upload(shared, activation);
    const Tensor out = empty(activation, num_rows, kHidden),
                 alone = empty(activation, num_rows, kHidden);
    backend->combine(step.view,
                     {device_outputs.view(), slots, weights, device_shared.view(), out.view()});
    backend->combine(step.view, {device_outputs.view(), slots, weights, {}, alone.view()});
    const Values got = download(out.view()), got_alone = download(alone.view());
    for (int t = 0; t < num_rows; ++t) {
      for (int c = 0; c < kHidden; ++c) {
        float y = 0.0f;
        for (int i = 0; i < kTopK; ++i) {
          const auto choice = static_cast<std::size_t>(t * kTopK + i);
          y = quant::fma_defined(outputs.at(slots[choice], c), weights[choice], y);
        }
        expect_same_bits(as_stored(activation, y), got_alone.at(t, c), "routed");
        expect_same_bits(as_stored(activation, y + shared.at(t, c)), got.at(t, c), "with shared");
      }
    }
  }

  // A backend whose areas for uploads take one part each, so that they are used again and again.
  void use_small_areas(const QuantSpec& spec, std::int64_t hidden_size, std::int64_t inter_size) {
    const quant::ExpertBlocks layout(hidden_size, inter_size, spec);
    std::int64_t most = 0;
    for (int b = 0; b < layout.num_blocks(); ++b) most = std::max(most, layout.block(b).bytes);
    CudaBackendOptions options = options_for(GetParam());
    options.scratch.expert_uploads = 4 * (most + 4096);
    backend = make_backend(options);
    reserved_ = options.scratch;
  }

  std::unique_ptr<DeviceSlots> slots_;
  int num_slots_used_ = 0;
  std::unique_ptr<Backend> other_;  // of the same GPU
  CudaScratch reserved_;
};

constexpr QuantSpec kFp8{QuantFormat::kF8E4m3B128, 128};
TEST_P(CudaExperts, InDeviceMemory) { run(kFp8, 512, 2064, Place::kDevice); }
TEST_P(CudaExperts, InHostMemory) { run(kFp8, 512, 2064, Place::kHost); }
TEST_P(CudaExperts, OddSizes) { run(kFp8, 130, 75, Place::kDevice); }
TEST_P(CudaExperts, Bf16Weights) { run(QuantSpec{QuantFormat::kBf16}, 136, 72, Place::kDevice); }
TEST_P(CudaExperts, F32Weights) { run(QuantSpec{QuantFormat::kF32}, 70, 34, Place::kHost); }
TEST_P(CudaExperts, Int8Weights) { run({QuantFormat::kInt8, 128}, 512, 2064, Place::kDevice); }
TEST_P(CudaExperts, Int8WeightsOfOddSizesInHostMemory) {
  run({QuantFormat::kInt8, 128}, 130, 75, Place::kHost);
}
TEST_P(CudaExperts, Int4Weights) { run({QuantFormat::kInt4, 64}, 512, 2064, Place::kDevice); }
TEST_P(CudaExperts, Int4WeightsInHostMemory) {
  run({QuantFormat::kInt4, 128}, 512, 2064, Place::kHost);
}
TEST_P(CudaExperts, Int4WeightsOfOddSizes) {
  run({QuantFormat::kInt4, 32}, 133, 75, Place::kDevice);
}

TEST_P(CudaExperts, InSlots) { run(kFp8, 512, 2064, Place::kSlot); }
TEST_P(CudaExperts, InPinnedMemory) { run(kFp8, 512, 2064, Place::kPinned); }
TEST_P(CudaExperts, InMemoryOfAnotherDevice) { run(kFp8, 512, 2064, Place::kOtherDevice); }
TEST_P(CudaExperts, InSeveralPlaces) { run({QuantFormat::kInt4, 64}, 512, 2064, Place::kMixed); }

// More parts than areas, so that each is filled again while kernels may still read it.
TEST_P(CudaExperts, ThroughFewAreas) {
  for (const QuantSpec& spec : {kFp8, QuantSpec{QuantFormat::kInt4, 32}}) {
    use_small_areas(spec, 1024, 2064);
    for (const Place place : {Place::kPinned, Place::kHost, Place::kOtherDevice}) {
      run(spec, 1024, 2064, place);
      if (HasFailure()) return;
    }
    EXPECT_EQ(cuda_scratch_held(*backend).expert_uploads, reserved_.expert_uploads);
  }
}

// Groups of 32 and so many of them that a block goes over its tile several times.
TEST_P(CudaExperts, Int4WeightsOfManyGroups) {
  run({QuantFormat::kInt4, 32}, 7168, 80, Place::kDevice);
}

// So few choices that they travel with the launch, and more.
TEST_P(CudaExperts, CombineAddsInTheGivenOrder) {
  for (const int num_rows : {5, 50}) combine(num_rows);
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaExperts, testing::ValuesIn(kPlainTypes), types_of_test);

}  // namespace
}  // namespace stoker
