// How linears of few rows are cut into blocks, or streamed by them, followed on the host: every
// segment of every pair of tiles falls to one block, whatever runs beside it, and every partial sum
// has a place of its own. Needs no GPU.
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
  LinearCut cut;
  std::vector<int> pairs;  // of each matrix
  int num_pairs = 0;

  Launch(const std::vector<std::int64_t>& rows, std::int64_t cols, std::int64_t at_once,
         bool leaves_room = false) {
    for (const std::int64_t of_matrix : rows) {
      grid.first_pair[pairs.size()] = num_pairs;
      pairs.push_back(linear_pairs(of_matrix));
      num_pairs += pairs.back();
    }
    cut = cut_linear(num_pairs, linear_segments(cols), at_once, leaves_room);
  }
};

TEST(LinearPlaces, LaunchesOfThePublishedModel) {
  struct Case {
    std::vector<std::int64_t> rows;
    std::int64_t cols;
    bool leaves_room;
    LinearCut cut;
  };
  const Case cases[] = {
      {{1536, 576, 128}, 7168, true, {7, 2, 4}},  // beside the indexer's weights
      {{1536, 576, 128}, 7168, false, {7, 1, 7}}, {{256}, 7168, false, {7, 1, 7}},
      {{24576, 8192}, 1536, false, {2, 2, 1}},    {{2048, 2048}, 7168, false, {7, 2, 4}},
      {{7168}, 2048, false, {2, 2, 1}},
  };
  for (const Case& of : cases) {
    const LinearCut cut = Launch(of.rows, of.cols, kOfH200, of.leaves_room).cut;
    EXPECT_EQ(std::tie(cut.num_segments, cut.segments_per_block, cut.num_shares),
              std::tie(of.cut.num_segments, of.cut.segments_per_block, of.cut.num_shares))
        << of.rows[0] << " x " << of.cols << ": " << cut.segments_per_block << " a block";
  }
}

TEST(LinearPlaces, EverySegmentOfAPairFallsToOneBlock) {
  const std::vector<std::vector<std::int64_t>> sets = {
      {16}, {1, 1, 1, 1}, {1536, 576, 128}, {2048, 2048}, {33, 17000, 1, 100}, {5000, 40, 700}};
  for (const auto& rows : sets) {
    for (const std::int64_t cols : {5, 1024, 1025, 7168, 18432}) {
      for (const std::int64_t at_once : {std::int64_t{1}, std::int64_t{40}, kOfH200}) {
        const Launch launch(rows, cols, at_once);
        const LinearCut& cut = launch.cut;
        std::map<std::tuple<int, int, int>, int> taken;  // matrix, pair, segment
        for (int y = 0; y < cut.num_shares; ++y) {
          for (int x = 0; x < launch.num_pairs; ++x) {
            const LinearPlace place = linear_place(launch.grid, x);
            const int pairs = launch.pairs.at(static_cast<std::size_t>(place.matrix));
            EXPECT_TRUE(place.pair >= 0 && place.pair < pairs) << place.pair;
            const int begin = y * cut.segments_per_block;
            EXPECT_LT(begin, cut.num_segments);  // no block is without work
            for (int s = begin; s < std::min(begin + cut.segments_per_block, cut.num_segments);
                 ++s) {
              ++taken[{place.matrix, place.pair, s}];
            }
          }
        }
        EXPECT_GE(std::int64_t{cut.num_segments} * kLinearSegmentCols, cols);
        for (std::size_t i = 0; i < rows.size(); ++i) {
          EXPECT_GE(std::int64_t{launch.pairs[i]} * kLinearOutputs, rows[i]);
        }
        EXPECT_EQ(static_cast<int>(taken.size()), launch.num_pairs * cut.num_segments);
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
    const int num_segments = launch.cut.num_segments;
    for (const int pairs : launch.pairs) {
      const std::int64_t end = begin + linear_partials(pairs, num_segments, num_rows);
      for (int segment = 0; segment < num_segments; ++segment) {
        for (int row = 0; row < num_rows; ++row) {
          for (int pair = 0; pair < pairs; ++pair) {
            const std::int64_t place =
                begin + linear_partial(pairs, static_cast<int>(num_rows), segment, row, pair);
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

TEST(LinearPlaces, LargeFp8MatricesAreStreamed) {
  const auto streamed = [](QuantFormat format, std::int64_t rows, std::int64_t cols) {
    QuantView weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.spec.format = format;
    return streams_linear(weight);
  };
  using enum QuantFormat;
  // Of the published model: o, gate and up, down of a dense layer; q_b, wq_b, and a shared expert.
  EXPECT_TRUE(streamed(kF8E4m3B128, 7168, 16384));
  EXPECT_TRUE(streamed(kF8E4m3B128, 18432, 7168));
  EXPECT_TRUE(streamed(kF8E4m3B128, 7168, 18432));
  EXPECT_FALSE(streamed(kF8E4m3B128, 24576, 1536));
  EXPECT_FALSE(streamed(kF8E4m3B128, 8192, 1536));
  EXPECT_FALSE(streamed(kF8E4m3B128, 2048, 7168));
  EXPECT_FALSE(streamed(kBf16, 129280, 7168));
  // Tiles are whole.
  EXPECT_TRUE(streamed(kF8E4m3B128, kLeastStreamedBytes / 1024 - 15, 1024));
  EXPECT_FALSE(streamed(kF8E4m3B128, kLeastStreamedBytes / 1024 - 16, 1024));
}

class LinearStreams : public testing::Test {
 protected:
  // Pairs, segments, blocks: pairs in many shares, shares of many pairs, and such as fit.
  static std::vector<LinearStream> some() {
    std::vector<LinearStream> streams;
    for (const int pairs : {1, 2, 7, 95, 224, 264, 576, 1152}) {
      for (const int segments : {1, 2, 7, 16, 18, 99}) {
        for (const int blocks : {1, 2, 108, 132, 264, 528}) {
          streams.push_back({pairs, segments, std::min(blocks, pairs * segments)});
        }
      }
    }
    return streams;
  }
};

TEST_F(LinearStreams, SharesAreEqualAndCoverAllSegments) {
  for (const LinearStream& stream : some()) {
    const int all = stream.num_pairs * stream.num_segments;
    EXPECT_EQ(stream.begin(0), 0);
    EXPECT_EQ(stream.begin(stream.num_blocks), all);
    for (int block = 0; block < stream.num_blocks; ++block) {
      const int share = stream.begin(block + 1) - stream.begin(block);
      EXPECT_TRUE(share > 0 && share >= all / stream.num_blocks &&
                  share <= (all + stream.num_blocks - 1) / stream.num_blocks)
          << share;
    }
  }
}

// As blocks go: whole pairs on their own; of the others, at most the first and the last of a share,
// each block adds to one counter what it has, and the sums stand where the last to add finds them.
TEST_F(LinearStreams, CutPairsMeetInOnePlace) {
  for (const LinearStream& stream : some()) {
    const int num_segments = stream.num_segments;
    std::map<int, int> owners;            // of a place: the pair
    std::map<int, std::set<int>> places;  // of a cut pair
    std::map<int, int> counted;           // segments of a pair
    for (int block = 0; block < stream.num_blocks; ++block) {
      const int begin = stream.begin(block), end = stream.begin(block + 1);
      const int first = begin / num_segments, last = (end - 1) / num_segments;
      for (int pair = first; pair <= last; ++pair) {
        const int has = stream.segments_of(pair, begin, end);
        EXPECT_EQ(has,
                  std::min(end, (pair + 1) * num_segments) - std::max(begin, pair * num_segments));
        counted[pair] += has;
        if (has == num_segments) continue;
        EXPECT_TRUE(pair == first || pair == last) << pair;
        const int place = stream.first_block(block, pair);
        EXPECT_TRUE(place >= 0 && place <= block) << place;
        places[pair].insert(place);
        const auto [owner, is_new] = owners.insert({place, pair});
        EXPECT_EQ(owner->second, pair) << "place " << place;
      }
      EXPECT_EQ(stream.segments_of(first - 1, begin, end), 0);
      EXPECT_EQ(stream.segments_of(last + 1, begin, end), 0);
    }
    EXPECT_EQ(static_cast<int>(counted.size()), stream.num_pairs);
    for (const auto& [pair, count] : counted) EXPECT_EQ(count, num_segments);
    for (const auto& [pair, of] : places) EXPECT_EQ(of.size(), 1U) << "pair " << pair;
    if (HasFailure()) return;
  }
}

TEST_F(LinearStreams, PartialSumsHaveAPlaceEach) {
  const LinearStream stream{95, 17, 264};
  for (const int num_rows : {1, 3, 8}) {
    std::set<std::int64_t> sums, counters;
    for (int block = 0; block < stream.num_blocks; ++block) {
      for (int row = 0; row < num_rows; ++row) {
        counters.insert(stream.counter(num_rows, row, block));
        for (int segment = 0; segment < stream.num_segments; ++segment) {
          const std::int64_t place = stream.partial(num_rows, segment, row, block);
          EXPECT_EQ(place % kLinearOutputs, 0);
          EXPECT_EQ(place, stream.partial(num_rows, 0, row, block) +
                               segment * stream.partial(num_rows, 1, 0, 0));
          sums.insert(place);
        }
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(sums.size()) * kLinearOutputs,
              stream.num_partials(num_rows));
    EXPECT_EQ(*sums.rbegin() + kLinearOutputs, stream.num_partials(num_rows));
    EXPECT_EQ(static_cast<std::int64_t>(counters.size()), stream.num_counters(num_rows));
    EXPECT_EQ(*counters.rbegin() + 1, stream.num_counters(num_rows));
  }
}

}  // namespace
}  // namespace stoker::gpu
