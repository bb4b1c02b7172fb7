// The index arithmetic of routed experts on tensor cores, followed on the host: what a warp copies,
// reads, unpacks and multiplies, with fragments as the PTX manual draws them, comes to the plain
// product. Needs no GPU.
#include "gpu/kernels/common/expert_places.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "tests/gpu/cuda_test.h"
#include "tests/gpu/expert_matrices.h"

namespace stoker::gpu {
namespace {

constexpr int kLanes = 32, kBankPieces = 8;  // 16 bytes from each of eight lanes fill all banks

TEST(ExpertPlaces, PiecesOfATileHaveAPlaceEach) {
  for (const int words : {1, 2, 4}) {
    for (const int turns : {8, 16, 32}) {
      if (turns % (4 * words) != 0) continue;
      std::set<int> places;
      for (int piece = 0; piece < 4 * turns; ++piece) {
        const int place = staged_piece(words, piece / 4, piece % 4);
        EXPECT_TRUE(place >= 0 && place < 4 * turns) << place;
        places.insert(place);
      }
      EXPECT_EQ(static_cast<int>(places.size()), 4 * turns) << words << " words";
    }
  }
}

TEST(ExpertPlaces, LanesThatReadAtOnceUseDifferentBanks) {
  for (int first = 0; first < kLanes; first += kBankPieces) {
    for (int unit = 0; unit < 4; ++unit) {
      for (const int words : {1, 2, 4}) {
        for (int w = 0; w < words; ++w) {
          std::set<int> banks;
          for (int lane = first; lane < first + kBankPieces; ++lane) {
            const int g = lane / 4, t = lane % 4;
            banks.insert(staged_piece(words, unit_turn(words, unit, t, w), g % 4) % kBankPieces);
          }
          EXPECT_EQ(static_cast<int>(banks.size()), kBankPieces)
              << words << " words, lane " << first;
        }
      }
      for (const int pieces : {4, 8, 16}) {
        if (unit >= pieces / 4) continue;
        std::set<int> banks;
        for (int lane = first; lane < first + kBankPieces; ++lane) {
          banks.insert(staged_input(pieces, lane / 4, unit_piece(unit, lane % 4)) % kBankPieces);
        }
        EXPECT_EQ(static_cast<int>(banks.size()), kBankPieces) << pieces << " pieces";
      }
    }
  }
}

TEST(ExpertPlaces, InputsHaveAPlaceEach) {
  for (const int pieces : {4, 8, 16}) {
    std::set<int> places;
    for (int row = 0; row < 128; ++row) {
      for (int piece = 0; piece < pieces; ++piece) {
        const int place = staged_input(pieces, row, piece);
        places.insert(place);
        EXPECT_EQ(staged_input(pieces, row + 2, piece), place + 2 * pieces);
      }
    }
    EXPECT_EQ(static_cast<int>(places.size()), 128 * pieces);
    EXPECT_EQ(*places.rbegin(), 128 * pieces - 1);
  }
}

float half_of(std::uint32_t pair, int i) {
  return bits_to_f32(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

// Eight turns on, a lane that copies moves on by a constant; so does one that reads, with units.
TEST(ExpertPlaces, StepsFromPlaceToPlace) {
  for (const int words : {1, 2, 4}) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int first = staged_piece(words, lane / 4, lane % 4) * kPieceBytes;
      for (int i = 0; i < 4; ++i) {
        EXPECT_EQ(eight_turns_on(words, first, i),
                  staged_piece(words, i * 8 + lane / 4, lane % 4) * kPieceBytes)
            << words << " words, lane " << lane;
      }
    }
  }
}

template <QuantFormat kFormat, int kGroup>
void expect_steps() {
  using C = Chunk<kFormat, kGroup, 16>;
  SCOPED_TRACE(quant_spec_name(C::kSpec));
  constexpr int kStep = 8;  // chunks, as many as expert_few.cu has warps
  for (int chunk = 0; chunk < 64; ++chunk) {
    const int group = chunk * C::kCols / kGroup;
    EXPECT_EQ(C::scales_at(chunk), group * C::kGroupScaleBytes);
    EXPECT_EQ(C::scales_at(chunk + kStep), C::scales_at(chunk) + C::scales_at(kStep));
    EXPECT_EQ(C::payload_at(chunk + kStep), C::payload_at(chunk) + C::payload_at(kStep));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const LanePlaces<C> alone(lane, 1), five(lane, 5), eight(lane, 8);
    EXPECT_EQ(alone.inputs[0], LanePlaces<C>(lane % 4, 8).inputs[0]);
    EXPECT_EQ(five.inputs[1], LanePlaces<C>(std::min(lane, 16 + lane % 4), 8).inputs[1]);
    EXPECT_EQ(alone.scales, eight.scales);
    for (int w = 0; w < C::kWords; ++w) EXPECT_EQ(alone.weights[w], eight.weights[w]);
  }
}

TEST(ExpertPlaces, StepsFromChunkToChunk) {
  expect_steps<QuantFormat::kF8E4m3B128, 128>();
  expect_steps<QuantFormat::kInt8, 128>();
  expect_steps<QuantFormat::kInt4, 32>();
  expect_steps<QuantFormat::kInt4, 64>();
  expect_steps<QuantFormat::kInt4, 128>();
  expect_steps<QuantFormat::kBf16, 128>();
}

TEST(ExpertPlaces, SharesOfPairsOfTasks) {
  struct Task {
    int first_pair;
  };
  for (const int num_tasks : {1, 2, 3, 7, 64, 255, 256}) {
    std::vector<Task> tasks;
    std::vector<int> owners;
    for (int task = 0; task < num_tasks; ++task) {
      tasks.push_back({static_cast<int>(owners.size())});
      owners.insert(owners.end(), static_cast<std::size_t>(1 + task * 7 % 5), task);
    }
    const int num_pairs = static_cast<int>(owners.size());
    for (int pair = 0; pair < num_pairs; ++pair) {
      ASSERT_EQ(task_at(tasks.data(), num_tasks, pair, &Task::first_pair),
                owners[static_cast<std::size_t>(pair)]);
    }
    for (const int wanted : {1, 2, 264, 396}) {
      const int blocks = std::min(wanted, num_pairs);
      EXPECT_EQ(share_begin(0, blocks, num_pairs), 0);
      EXPECT_EQ(share_begin(blocks, blocks, num_pairs), num_pairs);
      for (int block = 0; block < blocks; ++block) {
        const int share =
            share_begin(block + 1, blocks, num_pairs) - share_begin(block, blocks, num_pairs);
        EXPECT_GE(share, num_pairs / blocks);
        EXPECT_LE(share, (num_pairs + blocks - 1) / blocks);
      }
    }
  }
}

// Eight columns as four pairs, by what unpack_neighbours() does with the same words.
using Pair = std::array<float, 2>;
std::array<Pair, 4> unpacked(QuantFormat format, const std::uint32_t* words) {
  std::array<Pair, 4> out{};
  for (int i = 0; i < 4; ++i) {
    for (int side = 0; side < 2; ++side) {
      float& value = out[static_cast<std::size_t>(i)][static_cast<std::size_t>(side)];
      switch (format) {
        case QuantFormat::kF8E4m3B128: {
          const std::uint32_t codes = fp8_neighbours(words[i / 2], i % 2);
          value = quant::fp8_to_f32(static_cast<std::uint8_t>(codes >> (16 * side + 8)));
          break;
        }
        case QuantFormat::kInt4: {
          const std::uint32_t bits = (int4_neighbours(words[0], i) & kInt4Nibbles) ^ kInt4Flip;
          value = half_of(bits, side) - half_of(kInt4Offset, 0);
          break;
        }
        case QuantFormat::kInt8:
          value = static_cast<std::int8_t>(words[i / 2] >> (16 * (i % 2) + 8 * side));
          break;
        default:
          value = half_of(words[i], side);
      }
    }
  }
  return out;
}

// The same by unpack_biased().
std::array<Pair, 4> unpacked_biased(QuantFormat format, const std::uint32_t* words) {
  std::array<Pair, 4> out{};
  for (int i = 0; i < 4; ++i) {
    for (int side = 0; side < 2; ++side) {
      float& value = out[static_cast<std::size_t>(i)][static_cast<std::size_t>(side)];
      switch (format) {
        case QuantFormat::kF8E4m3B128:
          value = half_of(fp8_biased(words[i / 2], i % 2), side);
          break;
        case QuantFormat::kInt4:
          value = half_of(int4_biased(words[0], i), side);
          break;
        case QuantFormat::kInt8: {
          const Int8Pair pair = int8_pair(words[i / 2], i % 2);
          value = half_of(pair.value, side) - half_of(pair.less, side);
          break;
        }
        default:
          value = half_of(words[i], side);
      }
    }
  }
  return out;
}
// Eight inputs as biased_inputs() makes them.
std::array<Pair, 4> inputs_for_biased(QuantFormat format, const float* x) {
  if (format == QuantFormat::kInt4)
    return {{{x[0], x[4]}, {x[1], x[5]}, {x[2], x[6]}, {x[3], x[7]}}};
  std::array<Pair, 4> out{};
  const float factor = format == QuantFormat::kF8E4m3B128 ? half_of(kFp8InputFactor, 0) : 1.0f;
  for (std::size_t i = 0; i < 8; ++i) out[i / 2][i % 2] = round_to_bf16(x[i] * factor);
  return out;
}

// Every code, wherever it stands.
TEST(ExpertPlaces, BiasedCodes) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    for (int col = 0; col < 8; ++col) {
      const std::uint32_t others = 0xa5c3965au;
      const auto put = [&](int bits, std::uint32_t(&words)[2]) {
        const int shift = col * bits % 32;
        const std::uint32_t mask = ((1u << bits) - 1) << shift;
        words[col * bits / 32] = (others & ~mask) | (code << shift & mask);
      };
      std::uint32_t bytes[2] = {others, others}, nibbles[2] = {others, others};
      put(8, bytes), put(4, nibbles);
      const auto neighbour = [&](const std::array<Pair, 4>& pairs) {
        return pairs[static_cast<std::size_t>(col / 2)][static_cast<std::size_t>(col % 2)];
      };
      const float integer = static_cast<float>(static_cast<std::int8_t>(code));
      EXPECT_EQ(neighbour(unpacked_biased(QuantFormat::kInt8, bytes)), integer) << code;
      if ((code & 0x7f) != 0x7f) {
        const float value = quant::fp8_to_f32(static_cast<std::uint8_t>(code)) * 0x1p-120f;
        EXPECT_EQ(f32_to_bits(neighbour(unpacked_biased(QuantFormat::kF8E4m3B128, bytes))),
                  f32_to_bits(value))
            << code;
      }
      const float nibble = static_cast<float>(static_cast<std::int8_t>(code << 4) / 16);
      const std::array<Pair, 4> four = unpacked_biased(QuantFormat::kInt4, nibbles);
      EXPECT_EQ(four[static_cast<std::size_t>(col % 4)][static_cast<std::size_t>(col / 4)],
                nibble + 136.0f)
          << code;
    }
  }
  EXPECT_EQ(half_of(kInt4Less, 0), -half_of(kInt4Offset, 0));
}

// The smallest codes keep their products, and inputs below 2^68 stay finite.
TEST(ExpertPlaces, RangeOfBiasedFp8) {
  constexpr float kLargest = 0x1.fep67f;  // of BF16 below 2^68
  for (const std::uint32_t code : {0x01u, 0x07u, 0x08u, 0x7eu, 0x81u}) {
    const float weight = quant::fp8_to_f32(static_cast<std::uint8_t>(code));
    for (const float x : {0x1p-24f, 1.0f, -3.0f, 1000.0f, kLargest}) {
      const float columns[8] = {x};
      const std::uint32_t words[2] = {code, 0};
      const float product = unpacked_biased(QuantFormat::kF8E4m3B128, words)[0][0] *
                            inputs_for_biased(QuantFormat::kF8E4m3B128, columns)[0][0];
      EXPECT_EQ(product * kFp8ScaleFactor, weight * x) << code << " times " << x;
    }
  }
  const float beyond[8] = {0x1p68f};
  EXPECT_TRUE(std::isinf(inputs_for_biased(QuantFormat::kF8E4m3B128, beyond)[0][0]));
}

// One product: registers of all lanes in, sums of all lanes out.
struct Fragments {
  Pair a[kLanes][4], b[kLanes][2];
  double c[kLanes][4] = {};

  void multiply() {
    double left[16][16], right[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int j = 0; j < 4; ++j) {
        for (int side = 0; side < 2; ++side) {
          left[g + j % 2 * 8][2 * t + j / 2 * 8 + side] =
              a[lane][j][static_cast<std::size_t>(side)];
          if (j < 2) right[2 * t + j * 8 + side][g] = b[lane][j][static_cast<std::size_t>(side)];
        }
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, col = 2 * (lane % 4) + e % 2;
        for (int k = 0; k < 16; ++k) c[lane][e] += left[row][k] * right[k][col];
      }
    }
  }
};

HostMatrix tiled(Random& random, const QuantSpec& spec, std::int64_t rows, std::int64_t cols) {
  return in_tile16(random.matrix(source_format(spec), rows, cols), spec);
}

// A warp with a pair of tiles and eight inputs, chunk by chunk as the kernels go: expert_few.cu
// with biased weights, or expert_many.cu.
template <typename C, bool kFew>
void expect_plain_product(const HostMatrix& first, int first_tile, const HostMatrix& second,
                          int second_tile) {
  const std::int64_t cols = first.view.cols;
  const quant::Tile16 tile = quant::tile16_of(first.view);
  const HostMatrix* const matrices[2] = {&first, &second};
  const int tiles[2] = {first_tile, second_tile};
  Random random(17);
  const Values x = random.values(8, cols, DType::kBf16);
  constexpr int kPieces = C::kCols / 8;
  double total[kLanes][2][4] = {};
  const int num_turns = static_cast<int>(tile.num_turns());
  for (int chunk = 0; chunk * C::kCols < cols; ++chunk) {
    // 1. Copies.
    std::vector<std::byte> staged(C::kBytes, std::byte{0xee});
    staged.resize(C::kBytes + 8 * C::kCols * sizeof(bf16), std::byte{0xff});  // NaN
    const int group = chunk * C::kCols / C::kSpec.group;
    for (int s = 0; s < 2; ++s) {
      const std::byte* const payload = matrices[s]->view.payload + tiles[s] * tile.tile_bytes();
      const std::byte* const scales = matrices[s]->view.scales + tiles[s] * tile.tile_scale_bytes();
      for (int piece = 0; piece < C::kTurns * 4; ++piece) {
        std::byte* const to = staged.data() + s * C::kTileBytes +
                              staged_piece(C::kWords, piece / 4, piece % 4) * kPieceBytes;
        const int turn = chunk * C::kTurns + piece / 4;
        std::memset(to, 0, kPieceBytes);
        if (turn < num_turns) {
          std::memcpy(to, payload + (chunk * C::kTurns * 4 + piece) * kPieceBytes, kPieceBytes);
        }
      }
      std::byte* const scales_to = staged.data() + 2 * C::kTileBytes;
      if (C::kSpec.is_integer()) {
        for (int piece = 0; piece < C::kScalePieces; ++piece) {
          std::byte* const to = scales_to + (s * C::kScalePieces + piece) * kPieceBytes;
          std::memset(to, 0, kPieceBytes);
          constexpr int kGroupTurns = C::kSpec.group * C::kTurns / C::kCols;
          if (piece / 2 * kGroupTurns < num_turns - chunk * C::kTurns) {
            std::memcpy(to, scales + group * C::kGroupScaleBytes + piece * kPieceBytes,
                        kPieceBytes);
          }
        }
      } else if (C::kSpec.has_scales()) {
        std::memcpy(scales_to + s * 4, scales + group * 4, 4);
      }
    }
    for (int row = 0; row < 8; ++row) {
      for (int col = 0; col < C::kCols; ++col) {
        const std::int64_t k = chunk * C::kCols + col;
        const bf16 value = to_bf16(k < cols ? x.at(row, k) : 0.0f);
        std::memcpy(staged.data() + C::kBytes + staged_input(kPieces, row, col / 8) * kPieceBytes +
                        col % 8 * 2,
                    &value, sizeof(bf16));
      }
    }
    // 2. Products, a unit at a time.
    for (int unit = 0; unit < C::kUnits; ++unit) {
      for (int m = 0; m < 2; ++m) {
        Fragments product;
        for (int half = 0; half < 2; ++half) {
          Fragments less;  // what INT4 is off by
          for (int lane = 0; lane < kLanes; ++lane) {
            const int g = lane / 4, t = lane % 4;
            const LanePlaces<C> places(lane, 8);
            std::array<Pair, 4> w[4];
            for (int r = 0; r < 4; ++r) {
              std::uint32_t words[C::kWords];
              for (int i = 0; i < C::kWords; ++i) {
                const int piece = staged_piece(C::kWords, unit_turn(C::kWords, unit, t, i), g % 4);
                const int at = kFew ? places.weights[i] + unit * C::kUnitBytes
                                    : g / 4 * C::kTileBytes + piece * kPieceBytes;
                std::memcpy(&words[i], staged.data() + at + r * 4, 4);
              }
              w[r] = kFew ? unpacked_biased(C::kFormat, words) : unpacked(C::kFormat, words);
            }
            const int input_at =
                kFew ? places.inputs[unit % 2] + unit / 2 * 8 * kPieceBytes
                     : C::kBytes + staged_input(kPieces, g, unit_piece(unit, t)) * kPieceBytes;
            float eight[8];
            for (int i = 0; i < 8; ++i) {
              eight[i] = quant::decode_element(QuantFormat::kBf16, staged.data() + input_at, i);
            }
            const std::array<Pair, 4> inputs =
                inputs_for_biased(kFew ? C::kFormat : QuantFormat::kBf16, eight);
            for (int j = 0; j < 4; ++j) {
              product.a[lane][j] = w[a_row(m, j)][static_cast<std::size_t>(a_pair(half, j))];
              less.a[lane][j] = {half_of(kInt4Less, 0), half_of(kInt4Less, 0)};
              if (j >= 2) continue;
              product.b[lane][j] = inputs[static_cast<std::size_t>(b_pair(half, j))];
              less.b[lane][j] = product.b[lane][j];
            }
          }
          product.multiply();
          if (!kFew || C::kFormat != QuantFormat::kInt4) continue;
          less.multiply();
          for (int lane = 0; lane < kLanes; ++lane) {
            for (int e = 0; e < 4; ++e) product.c[lane][e] += less.c[lane][e];
          }
        }
        // 3. Scales of the rows.
        for (int lane = 0; lane < kLanes; ++lane) {
          const int g = lane / 4;
          for (int e = 0; e < 4; ++e) {
            float scale = 1.0f;
            const std::byte* const scales = staged.data() + 2 * C::kTileBytes;
            const int group_at = unit / C::kUnitsPerGroup * C::kGroupScaleBytes;
            const std::byte* const mine =
                kFew ? staged.data() + LanePlaces<C>(lane, 8).scales + group_at
                     : scales + g / 4 * C::kGroups * C::kGroupScaleBytes + group_at +
                           (C::kSpec.is_integer() ? g % 4 * 8 : 0);
            if (C::kSpec.is_integer()) {
              scale = quant::decode_element(QuantFormat::kBf16, mine, a_row(m, e / 2));
            } else if (C::kSpec.has_scales()) {
              std::memcpy(&scale, mine, 4);
              if (kFew) scale *= kFp8ScaleFactor;
            }
            total[lane][m][e] += product.c[lane][e] * scale;
          }
        }
      }
    }
  }
  // 4. Every output is there, once.
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int m = 0; m < 2; ++m) {
      for (int e = 0; e < 4; ++e) {
        const int row = sum_row(lane / 4, m, e), input = sum_input(lane % 4, e);
        seen.insert({row, input});
        const int s = row / quant::kTileRows;
        const std::int64_t weight_row = tiles[s] * quant::kTileRows + row % quant::kTileRows;
        if (weight_row >= matrices[s]->view.rows) continue;
        double dot = 0.0, size = 0.0;
        for (std::int64_t k = 0; k < cols; ++k) {
          const double product = double{quant::element_at(matrices[s]->view, weight_row, k)} *
                                 double{quant::scale_at(matrices[s]->view, weight_row, k)} *
                                 double{x.at(input, k)};
          dot += product;
          size += std::abs(product);
        }
        EXPECT_NEAR(dot, total[lane][m][e], 1e-6 * size + 1e-30)
            << "row " << row << " input " << input;
      }
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), kPairRows * 8);
}

template <QuantFormat kFormat, int kGroup, int kTurns, bool kFew>
void expect_plain_products() {
  using C = Chunk<kFormat, kGroup, kTurns>;
  Random random(16);
  for (const std::int64_t cols : {std::int64_t{512}, std::int64_t{200}, std::int64_t{8}}) {
    SCOPED_TRACE(fmt::format("{} of {} columns", quant_spec_name(C::kSpec), cols));
    const HostMatrix gate = tiled(random, C::kSpec, 40, cols);
    const HostMatrix up = tiled(random, C::kSpec, 40, cols);
    expect_plain_product<C, kFew>(gate, 2, up, 2);    // gate and up, of a tile that is not whole
    expect_plain_product<C, kFew>(gate, 0, gate, 1);  // neighbours
    if (testing::Test::HasFailure()) return;
  }
}

// The chunks of expert_few.cu have 16 turns, those of expert_many.cu 64 columns.
TEST(ExpertPlaces, ProductsOfFewRows) {
  expect_plain_products<QuantFormat::kF8E4m3B128, 128, 16, true>();
  expect_plain_products<QuantFormat::kInt8, 128, 16, true>();
  expect_plain_products<QuantFormat::kInt4, 32, 16, true>();
  expect_plain_products<QuantFormat::kInt4, 64, 16, true>();
  expect_plain_products<QuantFormat::kInt4, 128, 16, true>();
  expect_plain_products<QuantFormat::kBf16, 128, 16, true>();
}
// Those of linear_stream.cu are whole groups.
TEST(ExpertPlaces, ProductsOfStreamedLinears) {
  expect_plain_products<QuantFormat::kF8E4m3B128, 128, 32, true>();
}
TEST(ExpertPlaces, ProductsOfManyRows) {
  expect_plain_products<QuantFormat::kF8E4m3B128, 128, 16, false>();
  expect_plain_products<QuantFormat::kInt8, 128, 16, false>();
  expect_plain_products<QuantFormat::kInt4, 32, 8, false>();
  expect_plain_products<QuantFormat::kInt4, 64, 8, false>();
  expect_plain_products<QuantFormat::kInt4, 128, 8, false>();
  expect_plain_products<QuantFormat::kBf16, 128, 32, false>();
}

}  // namespace
}  // namespace stoker::gpu
