# Compiler options that every target shares, and the one way a folder becomes a library.

# Bits must not depend on what the optimiser fuses: the only fused multiply-adds are written ones.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlapping copies in literal + std::string (its bug 105651).
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
# clang reads GCC 12's std::stable_sort as a use of something deprecated.
add_compile_options($<$<CXX_COMPILER_ID:Clang>:-Wno-deprecated-declarations>)
if(STOKER_WERROR)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(STOKER_SANITIZE)
  add_compile_options(-fsanitize=${STOKER_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${STOKER_SANITIZE})
endif()
if(STOKER_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

find_program(STOKER_CCACHE ccache)
if(STOKER_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${STOKER_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${STOKER_CCACHE})
endif()

# stoker_library(core DEPENDS fmt::fmt): every .cc below the calling folder, as target stoker_core.
function(stoker_library name)
  cmake_parse_arguments(arg "" "" "DEPENDS;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  if(NOT sources)  # a folder that holds no code yet
    file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/empty.cc CONTENT "")
    set(sources ${CMAKE_CURRENT_BINARY_DIR}/empty.cc)
  endif()
  add_library(stoker_${name} STATIC ${sources})
  target_include_directories(stoker_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(stoker_${name} PUBLIC ${arg_DEPENDS} PRIVATE ${arg_PRIVATE})
  if(STOKER_SANITIZE)  # eight sources at a time compile faster; that each stands alone is seen without sanitizers
    set_target_properties(stoker_${name} PROPERTIES UNITY_BUILD ON)
    # GCC takes the sources for headers, whose types must not have members of an anonymous namespace.
    target_compile_options(stoker_${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()
