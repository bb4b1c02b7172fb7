// make_tiny_model DIR: writes a random model that takes and gives text, for tests of the program.

#include <cstdio>
#include <filesystem>

#include "tests/support/byte_tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_tiny_model DIR\n");
    return 2;
  }
  std::filesystem::create_directories(argv[1]);
  stoker::test::write_tiny_text_model(argv[1]);
  return 0;
}
