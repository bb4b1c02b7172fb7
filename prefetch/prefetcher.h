// Prefetcher: turns routing into wishes.
#pragma once

namespace stoker {

struct PrefetchOptions {
  bool enabled = true;  // --prefetch on|off; warm-up goes on either way
  // Lets felt wait decide, while running, whether to fetch ahead; false: always.
  bool adaptive = true;
  int num_ranked = 0;            // guesses per row asked of a look-ahead; 0: twice the top-k
  double min_probability = 0.2;  // guesses below are not fetched
  int max_in_flight = 8;         // experts fetched ahead and not landed yet
};

class Prefetcher;

}  // namespace stoker
