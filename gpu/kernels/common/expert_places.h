// Where the operands of routed experts stand when tensor cores multiply them (expert_few.cu,
// expert_many.cu; weights of linear_stream.cu too), as plain index arithmetic that tests follow on
// the host.
//
// A warp multiplies a pair of tiles of 16 weight rows (gate and up, or two of down) with inputs, 32
// columns (a unit) at a time. Lane 4g + t holds
//
//   of the weights   rows 4 (g % 4) .. + 3 of tile g / 4, columns 8t .. 8t + 7 of the unit
//   of the inputs    row g of each eight, the same columns
//
// so that either share is whole pieces of 16 bytes, and columns stand in pairs of neighbours. Two
// products (mma.m16n8k16) take a unit: the order of columns within one is free, as long as weights
// and inputs agree.
#pragma once

#include "gpu/kernels/common/bits.h"
#include "quant/tile16.h"

namespace stoker::gpu {

inline constexpr int kUnitCols = 32;
inline constexpr int kPieceBytes = 16;
inline constexpr int kPairRows = 2 * quant::kTileRows;

// A piece of a tile is one turn of four rows: quad q has rows 4q .. 4q + 3. In memory piece
// (turn, quad) is number 4 turn + quad; in shared memory it is number staged_piece(), so that the
// eight lanes that read at once use different banks. `words`: dwords of eight columns of a row.
// `turn` counts from the first of a stretch of units.
STOKER_HD constexpr int staged_piece(int words, int turn, int quad) {
  const auto eight = static_cast<unsigned>(turn) / static_cast<unsigned>(words);
  return (turn * 4 + quad) ^ static_cast<int>(eight % 4 * 2);
}
// The turn of word `word` of a lane's eight columns.
STOKER_HD constexpr int unit_turn(int words, int unit, int t, int word) {
  return (unit * 4 + t) * words + word;
}

// Inputs in shared memory: rows of `pieces` pieces, 4, 8 or 16, of eight columns each. Two rows on,
// a piece is 2 `pieces` further.
STOKER_HD constexpr int staged_input(int pieces, int row, int piece) {
  return row * pieces + (pieces < 8 ? piece : piece ^ ((row & 1) * 4));
}
STOKER_HD constexpr int unit_piece(int unit, int t) { return unit * 4 + t; }

// With w[r] the four pairs of columns of a lane's row r, and x those of its input: register j of
// the first operand of product (m, half) is w[a_row][a_pair], register j of the second x[b_pair].
STOKER_HD constexpr int a_row(int m, int j) { return 2 * m + j % 2; }
STOKER_HD constexpr int a_pair(int half, int j) { return 2 * half + j / 2; }
STOKER_HD constexpr int b_pair(int half, int j) { return 2 * half + j; }

// Element e of the result of product m: row of the pair of tiles, and input of the eight.
STOKER_HD constexpr int sum_row(int g, int m, int e) { return 4 * g + 2 * m + e / 2; }
STOKER_HD constexpr int sum_input(int t, int e) { return 2 * t + e % 2; }

// What a warp asks for at once: kTurns turns of both tiles and the scales of their columns. In
// shared memory: | first tile | second tile | scales of the first | of the second |
template <QuantFormat kFormatOf, int kGroupCols, int kTurnsOf>
struct Chunk {
  static constexpr QuantFormat kFormat = kFormatOf;
  static constexpr QuantSpec kSpec{kFormatOf, kGroupCols};
  static constexpr int kWords = kSpec.element_bits() * 8 / 32;  // dwords of eight columns
  static constexpr int kTurns = kTurnsOf;
  static constexpr int kCols = kTurns * 32 / kSpec.element_bits();
  static constexpr int kUnits = kCols / kUnitCols;
  static constexpr int kTileBytes = kTurns * quant::kTileRows * 4;
  // Groups that begin in it. A group is a part of a chunk, or a whole number of chunks.
  static constexpr int kGroups = kCols > kGroupCols ? kCols / kGroupCols : 1;
  static constexpr int kUnitsPerGroup = kUnits / kGroups;
  static constexpr int kGroupScaleBytes = kSpec.is_integer() ? quant::kTileRows * 2 : 4;
  static constexpr int kScaleBytes = kSpec.is_integer()   ? 2 * kGroups * kGroupScaleBytes
                                     : kSpec.has_scales() ? kPieceBytes
                                                          : 0;
  static constexpr int kScalePieces = 2 * kGroups;  // of a tile of integers
  static constexpr int kBytes = 2 * kTileBytes + kScaleBytes;
  static constexpr int kUnitBytes = kWords * 4 * quant::kTileRows * 4;  // of a tile
  // Where chunk `chunk` begins in a tile's payload, and the scales of its columns among the tile's.
  STOKER_HD static constexpr int payload_at(int chunk) { return chunk * kTileBytes; }
  STOKER_HD static constexpr int scales_at(int chunk) {
    return chunk * kCols / kGroupCols * kGroupScaleBytes;
  }
  static_assert(kTurns % 8 == 0 && kCols % kUnitCols == 0);
  static_assert(kGroupCols % kUnitCols == 0 &&
                (kCols % kGroupCols == 0 || kGroupCols % kCols == 0));
  static_assert(kSpec.is_integer() ? 4 * kGroups <= 32 : kGroups == 1);
};

// Where lane 4g + t reads in a chunk with the inputs of its columns behind it: the words of its
// first unit (those of unit u are u kUnitBytes further), its inputs of units 0 and 1 (of u: those
// of u % 2, u / 2 times eight pieces further), its scales. Of inputs that are not there it reads
// the last that is.
template <typename C>
struct LanePlaces {
  int weights[C::kWords], inputs[2], scales;

  STOKER_HD constexpr LanePlaces(int lane, int num_inputs)
      : weights{},
        inputs{},
        scales(2 * C::kTileBytes + lane / 16 * C::kGroups * C::kGroupScaleBytes +
               (C::kSpec.is_integer() ? lane / 4 % 4 * 8 : 0)) {
    const int g = lane / 4, t = lane % 4;
    for (int w = 0; w < C::kWords; ++w) {
      weights[w] = g / 4 * C::kTileBytes +
                   staged_piece(C::kWords, unit_turn(C::kWords, 0, t, w), g % 4) * kPieceBytes;
    }
    const int row = g < num_inputs ? g : num_inputs - 1;
    for (int u = 0; u < 2; ++u) {
      inputs[u] = C::kBytes + staged_input(C::kCols / 8, row, unit_piece(u, t)) * kPieceBytes;
    }
  }
};

// The place of the piece 8 `eights` turns after one whose place is `bytes`.
STOKER_HD constexpr int eight_turns_on(int words, int bytes, int eights) {
  // Eight turns of four words are two times eight columns.
  const int swapped = words == 4 && eights % 2 == 1 ? bytes ^ 4 * kPieceBytes : bytes;
  return swapped + eights * 32 * kPieceBytes;
}

// Where share `share` of `num_shares` of `count` things begins, and the one before ends.
STOKER_HD constexpr int share_begin(int share, int num_shares, int count) {
  return static_cast<int>(static_cast<unsigned>(share) * static_cast<unsigned>(count) /
                          static_cast<unsigned>(num_shares));
}
// The task that has number `index` of what a launch has in a row; `first` says where each begins.
template <typename Task>
STOKER_HD constexpr int task_at(const Task* tasks, int num_tasks, int index,
                                std::int32_t Task::* first) {
  int begin = 0, end = num_tasks;
  while (end - begin > 1) {
    const int middle = (begin + end) / 2;
    (tasks[middle].*first <= index ? begin : end) = middle;
  }
  return begin;
}

// Columns 2i and 2i + 1 of a dword of FP8 in the upper bytes of its halves; the lower bytes hold
// anything.
STOKER_HD inline std::uint32_t fp8_neighbours(std::uint32_t word, int i) {
  return pick_bytes(word, word, i == 0 ? 0x1100u : 0x3322u);
}
// Columns 2i and 2i + 1 of a dword of INT4 in the low nibbles of the halves, beside anything.
STOKER_HD inline std::uint32_t int4_neighbours(std::uint32_t word, int i) {
  return pick_bytes(word, word >> 4, 0x4400u + 0x1111u * static_cast<std::uint32_t>(i));
}
// Of those, code + 136 as BF16: 128 + (code + 8), the flipped sign bit being the 8.
inline constexpr std::uint32_t kInt4Nibbles = 0x000f000fu, kInt4Flip = 0x43084308u;
inline constexpr std::uint16_t kInt4Offset = 0x4308;  // 136

// Codes as pairs of BF16 in the fewest instructions, off by what the kernel puts right in inputs
// and sums.
//
// FP8: columns 2i and 2i + 1, times 2^-120: a code's exponent as BF16's, subnormal codes included.
// Inputs go times 2^60, so that neither they nor products leave the range, and scales take back the
// other 2^60. Inputs of 2^68 and more become infinite.
STOKER_HD inline std::uint32_t fp8_biased(std::uint32_t word, int i) {
  // A code in the lower byte of each half and its sign all over the upper one, moved up.
  return pick_bytes(word, word, i == 0 ? 0x9180u : 0xb3a2u) << 4 & 0x87f087f0u;
}
inline constexpr std::uint16_t kFp8InputFactor = 0x5d80;  // 2^60
inline constexpr float kFp8ScaleFactor = 0x1p60f;

// INT4: columns i and i + 4, plus kInt4Offset. The inputs' sum times kInt4Less is added to sums.
STOKER_HD inline std::uint32_t int4_biased(std::uint32_t word, int i) {
  return masked_xor(word >> 4 * i, kInt4Nibbles, kInt4Flip);
}
inline constexpr std::uint16_t kInt4Less = 0xc308;  // -136

// INT8: columns 2i and 2i + 1 of a dword, as what is left after `less`: 128 and the lower bits of
// the code, less 128, or 256 where the code is below zero.
struct Int8Pair {
  std::uint32_t value, less;
};
STOKER_HD inline Int8Pair int8_pair(std::uint32_t word, int i) {
  const std::uint32_t bits = pick_bytes(word, 0x43434343u, i == 0 ? 0x4140u : 0x4342u);
  return {bits & 0xff7fff7fu, bits & 0xff80ff80u};
}

}  // namespace stoker::gpu
