# Libraries come from the distribution's packages; .ci/setup installs them.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 REQUIRED)
find_package(dnnl REQUIRED)  # >= 2.6; the API change to 3.x lives in cpu/onednn_matmul.cc alone
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(mimalloc REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET hwloc)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(libedit REQUIRED IMPORTED_TARGET libedit)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
