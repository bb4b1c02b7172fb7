// How linears of few rows are cut into blocks, followed on the host: every segment of every pair of
// tiles falls to one block, whatever runs beside it, and every partial sum has a place of its own.
// Needs no GPU.
#include "gpu/kernels/common/linear_places.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

namespace stoker::gpu {
namespace {

constexpr std::int64_t kOfH200 = 132 * 3;  // blocks at once, FP8 and up to eight rows

// A grid as launch_linear_few() makes it.
struct Launch {
  LinearGrid grid;
  std::vector<LinearCut> cuts;
  int num_pairs = 0, most_shares = 0;

  Launch(const std::vector<std::int64_t>& rows, std::int64_t cols, std::int64_t at_once) {
    for (const std::int64_t of_matrix : rows) {
      const LinearCut cut = cut_linear(of_matrix, cols, at_once);
      grid.first_pair[cuts.size()] = num_pairs;
      cuts.push_back(cut);
      num_pairs += cut.num_pairs;
      most_shares = std::max(most_shares, cut.num_shares);
    }
  }
};

TEST(LinearPlaces, MatricesOfThePublishedModel) {
  struct Case {
    std::int64_t rows, cols;
    LinearCut cut;
  };
  const Case cases[] = {
      {1536, 7168, {48, 7, 1, 7}},   {576, 7168, {18, 7, 1, 7}},    {128, 7168, {4, 7, 1, 7}},
      {24576, 1536, {768, 2, 2, 1}}, {8192, 1536, {256, 2, 2, 1}},  {2048, 7168, {64, 7, 2, 4}},
      {7168, 2048, {224, 2, 2, 1}},  {18432, 7168, {576, 7, 4, 2}},
  };
  for (const Case& of : cases) {
    const LinearCut cut = cut_linear(of.rows, of.cols, kOfH200);
    EXPECT_EQ(std::tie(cut.num_pairs, cut.num_segments, cut.segments_per_block, cut.num_shares),
              std::tie(of.cut.num_pairs, of.cut.num_segments, of.cut.segments_per_block,
                       of.cut.num_shares))
        << of.rows << " x " << of.cols << ": " << cut.segments_per_block << " a block";
  }
}

TEST(LinearPlaces, EverySegmentOfAPairFallsToOneBlock) {
  const std::vector<std::vector<std::int64_t>> sets = {
      {16}, {1, 1, 1, 1}, {1536, 576, 128}, {2048, 2048}, {33, 17000, 1, 100}, {5000, 40, 700}};
  for (const auto& rows : sets) {
    for (const std::int64_t cols : {5, 1024, 1025, 7168, 18432}) {
      for (const std::int64_t at_once : {std::int64_t{1}, std::int64_t{40}, kOfH200}) {
        const Launch launch(rows, cols, at_once);
        std::map<std::tuple<int, int, int>, int> taken;  // matrix, pair, segment
        for (int y = 0; y < launch.most_shares; ++y) {
          for (int x = 0; x < launch.num_pairs; ++x) {
            const LinearPlace place = linear_place(launch.grid, x);
            const LinearCut& cut = launch.cuts.at(static_cast<std::size_t>(place.matrix));
            EXPECT_TRUE(place.pair >= 0 && place.pair < cut.num_pairs) << place.pair;
            if (y >= cut.num_shares) continue;
            const int begin = y * cut.segments_per_block;
            EXPECT_LT(begin, cut.num_segments);  // no block is without work
            for (int s = begin; s < std::min(begin + cut.segments_per_block, cut.num_segments);
                 ++s) {
              ++taken[{place.matrix, place.pair, s}];
            }
          }
        }
        std::size_t expected = 0;
        for (std::size_t i = 0; i < rows.size(); ++i) {
          const LinearCut& cut = launch.cuts[i];
          EXPECT_GE(std::int64_t{cut.num_pairs} * kLinearOutputs, rows[i]);
          EXPECT_GE(std::int64_t{cut.num_segments} * kLinearSegmentCols, cols);
          expected +=
              static_cast<std::size_t>(cut.num_pairs) * static_cast<std::size_t>(cut.num_segments);
        }
        EXPECT_EQ(taken.size(), expected);
        for (const auto& [segment, count] : taken) EXPECT_EQ(count, 1);
      }
    }
  }
}

TEST(LinearPlaces, PartialSumsHaveAPlaceEach) {
  for (const std::int64_t num_rows : {1, 3, 16}) {
    const Launch launch({1536, 33, 17000, 1}, 4097, kOfH200);
    std::set<std::int64_t> places;
    std::int64_t begin = 0, num_sums = 0;
    for (const LinearCut& cut : launch.cuts) {
      const std::int64_t end = begin + cut.num_partials(num_rows);
      if (cut.num_shares == 1) {
        EXPECT_EQ(end, begin);
        EXPECT_EQ(cut.num_counters(), 0);
        continue;
      }
      EXPECT_EQ(cut.num_counters(), cut.num_pairs);
      for (int segment = 0; segment < cut.num_segments; ++segment) {
        for (int row = 0; row < num_rows; ++row) {
          for (int pair = 0; pair < cut.num_pairs; ++pair) {
            const std::int64_t place =
                begin +
                linear_partial(cut.num_pairs, static_cast<int>(num_rows), segment, row, pair);
            EXPECT_TRUE(place >= begin && place + kLinearOutputs <= end) << place;
            EXPECT_EQ(place % kLinearOutputs, 0);
            places.insert(place);
            ++num_sums;
          }
        }
      }
      begin = end;
    }
    EXPECT_EQ(static_cast<std::int64_t>(places.size()), num_sums);
    EXPECT_EQ(num_sums * kLinearOutputs, begin);  // and nothing lies idle
  }
}

}  // namespace
}  // namespace stoker::gpu
