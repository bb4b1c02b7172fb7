// The index arithmetic of routed experts on tensor cores, followed on the host: what a warp copies,
// reads, unpacks and multiplies, with fragments as the PTX manual draws them, comes to the plain
// product. Needs no GPU.
#include "gpu/kernels/common/expert_places.h"

#include <gtest/gtest.h>

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

// One product: registers of all lanes in, sums of all lanes out.
struct Fragments {
  Pair a[kLanes][4], b[kLanes][2];
  float c[kLanes][4] = {};

  void multiply() {
    float left[16][16], right[16][8];
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

// A warp with a pair of tiles and eight inputs, chunk by chunk as the kernels go.
template <typename C>
void expect_plain_product(const HostMatrix& first, int first_tile, const HostMatrix& second,
                          int second_tile) {
  const std::int64_t cols = first.view.cols;
  const quant::Tile16 tile = quant::tile16_of(first.view);
  const HostMatrix* const matrices[2] = {&first, &second};
  const int tiles[2] = {first_tile, second_tile};
  Random random(17);
  const Values x = random.values(8, cols, DType::kBf16);
  constexpr int kPieces = C::kCols / 8;
  float total[kLanes][2][4] = {};
  const int num_turns = static_cast<int>(tile.num_turns());
  for (int chunk = 0; chunk * C::kCols < cols; ++chunk) {
    // 1. Copies.
    std::vector<std::byte> staged(C::kBytes, std::byte{0xee});
    std::vector<float> inputs(8 * C::kCols, NAN);
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
        inputs[static_cast<std::size_t>(staged_input(kPieces, row, col / 8) * 8 + col % 8)] =
            k < cols ? x.at(row, k) : 0.0f;
      }
    }
    // 2. Products, a unit at a time.
    for (int unit = 0; unit < C::kUnits; ++unit) {
      for (int m = 0; m < 2; ++m) {
        Fragments product;
        for (int half = 0; half < 2; ++half) {
          for (int lane = 0; lane < kLanes; ++lane) {
            const int g = lane / 4, t = lane % 4;
            std::array<Pair, 4> w[4];
            for (int r = 0; r < 4; ++r) {
              std::uint32_t words[C::kWords];
              for (int i = 0; i < C::kWords; ++i) {
                const int piece = staged_piece(C::kWords, unit_turn(C::kWords, unit, t, i), g % 4);
                std::memcpy(&words[i],
                            staged.data() + g / 4 * C::kTileBytes + piece * kPieceBytes + r * 4, 4);
              }
              w[r] = unpacked(C::kFormat, words);
            }
            const auto at =
                static_cast<std::size_t>(staged_input(kPieces, g, unit_piece(unit, t)) * 8);
            for (int j = 0; j < 4; ++j) {
              product.a[lane][j] = w[a_row(m, j)][static_cast<std::size_t>(a_pair(half, j))];
              if (j >= 2) continue;
              const auto pair = at + static_cast<std::size_t>(2 * b_pair(half, j));
              product.b[lane][j] = {inputs[pair], inputs[pair + 1]};
            }
          }
          product.multiply();
        }
        // 3. Scales of the rows.
        for (int lane = 0; lane < kLanes; ++lane) {
          const int g = lane / 4;
          for (int e = 0; e < 4; ++e) {
            float scale = 1.0f;
            const std::byte* const scales = staged.data() + 2 * C::kTileBytes;
            if (C::kSpec.is_integer()) {
              const std::byte* const four =
                  scales + (g / 4 * C::kGroups + unit / C::kUnitsPerGroup) * C::kGroupScaleBytes +
                  g % 4 * 8;
              scale = quant::decode_element(QuantFormat::kBf16, four, a_row(m, e / 2));
            } else if (C::kSpec.has_scales()) {
              std::memcpy(&scale, scales + g / 4 * 4, 4);
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

template <QuantFormat kFormat, int kGroup, int kTurns>
void expect_plain_products() {
  using C = Chunk<kFormat, kGroup, kTurns>;
  Random random(16);
  for (const std::int64_t cols : {std::int64_t{512}, std::int64_t{200}, std::int64_t{8}}) {
    SCOPED_TRACE(fmt::format("{} of {} columns", quant_spec_name(C::kSpec), cols));
    const HostMatrix gate = tiled(random, C::kSpec, 40, cols);
    const HostMatrix up = tiled(random, C::kSpec, 40, cols);
    expect_plain_product<C>(gate, 2, up, 2);    // gate and up, of a tile that is not whole
    expect_plain_product<C>(gate, 0, gate, 1);  // neighbours
    if (testing::Test::HasFailure()) return;
  }
}

// The chunks of expert_few.cu have 16 turns, those of expert_many.cu 64 columns.
TEST(ExpertPlaces, Fp8Products) { expect_plain_products<QuantFormat::kF8E4m3B128, 128, 16>(); }
TEST(ExpertPlaces, Int8Products) { expect_plain_products<QuantFormat::kInt8, 128, 16>(); }
TEST(ExpertPlaces, Int4Products) {
  expect_plain_products<QuantFormat::kInt4, 32, 16>();
  expect_plain_products<QuantFormat::kInt4, 64, 16>();
  expect_plain_products<QuantFormat::kInt4, 128, 16>();
  expect_plain_products<QuantFormat::kInt4, 32, 8>();
  expect_plain_products<QuantFormat::kInt4, 64, 8>();
  expect_plain_products<QuantFormat::kInt4, 128, 8>();
}
TEST(ExpertPlaces, Bf16Products) {
  expect_plain_products<QuantFormat::kBf16, 128, 16>();
  expect_plain_products<QuantFormat::kBf16, 128, 32>();
}

}  // namespace
}  // namespace stoker::gpu
