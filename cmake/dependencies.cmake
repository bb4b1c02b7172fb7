# Libraries come from the distribution's packages; .ci/setup installs them.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET hwloc)
pkg_check_modules(liburing REQUIRED IMPORTED_TARGET liburing)
if(NOT STOKER_FUZZ)
  find_package(CLI11 REQUIRED)
  # oneDNN >= 2.6; the API change to 3.x lives in cpu/onednn_matmul.cc alone. Not by its own CMake package:
  # Debian 12's asks for OpenCL headers, which we do not use and its libdnnl-dev does not bring.
  find_path(DNNL_INCLUDE_DIR dnnl.hpp REQUIRED)
  find_library(DNNL_LIBRARY dnnl REQUIRED)
  add_library(DNNL::dnnl UNKNOWN IMPORTED)
  set_target_properties(DNNL::dnnl PROPERTIES
    IMPORTED_LOCATION ${DNNL_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR})
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  find_package(mimalloc REQUIRED)
  pkg_check_modules(libedit REQUIRED IMPORTED_TARGET libedit)
endif()
