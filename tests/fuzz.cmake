# Fuzzing (fuzz/README.md).  The corpora are replayed in every build, by whatever compiler; where there is a clang with libFuzzer,
# the fuzzers are built beside and look for something new, for EN_FUZZ_SECONDS each.
set(EN_FUZZ_SECONDS 20 CACHE STRING "seconds that ctest gives each fuzz target")
set(fuzz ${CMAKE_CURRENT_SOURCE_DIR}/fuzz)
set(fuzz_targets decode packed checkpoint)

foreach(target ${fuzz_targets})
  add_executable(replay_${target} fuzz/fuzz_${target}.c fuzz/replay.c)
  target_link_libraries(replay_${target} PRIVATE en_warnings en_data)
  add_test(NAME test_fuzz_${target}_corpus COMMAND replay_${target} ${fuzz}/corpus/${target})
  set_tests_properties(test_fuzz_${target}_corpus PROPERTIES TIMEOUT 300 ${EN_COMPUTES})
endforeach()
foreach(target packed checkpoint)              # their files are HDF5's
  target_sources(replay_${target} PRIVATE fuzz/hostile_h5.c fuzz/hostile_${target}.c)
  target_include_directories(replay_${target} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_link_libraries(replay_${target} PRIVATE ${HDF5_C_LIBRARIES} ZLIB::ZLIB)
endforeach()
target_link_libraries(replay_checkpoint PRIVATE en_trainer)

add_executable(make_fuzz_corpus EXCLUDE_FROM_ALL fuzz/make_corpus.c data_help.c)
target_include_directories(make_fuzz_corpus PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(make_fuzz_corpus PRIVATE en_warnings en_data JPEG::JPEG PNG::PNG ${CMOCKA_LIBRARY} m)

# A clang may be there without its run-time libraries, which are a package of their own.
if(NOT EN_SANITIZE AND NOT DEFINED EN_LIBFUZZER)
  find_program(EN_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14)
  set(works OFF)
  if(EN_CLANG)
    set(probe ${CMAKE_CURRENT_BINARY_DIR}/fuzz-probe)
    file(WRITE ${probe}.c "int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return p && n ? 0 : 0; }\n")
    execute_process(COMMAND ${EN_CLANG} -fsanitize=fuzzer,address,undefined ${probe}.c -o ${probe} RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(NOT failed)
      execute_process(COMMAND ${probe} -runs=1 RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    endif()
    if(NOT failed)
      set(works ON)
    endif()
  endif()
  set(EN_LIBFUZZER ${works} CACHE BOOL "build and run the fuzzers (clang with libFuzzer)")
  if(NOT works)
    message(STATUS "No clang with libFuzzer (packages clang and libclang-rt-dev): test_fuzz_* only replay their corpora")
  endif()
endif()

if(EN_LIBFUZZER AND NOT EN_SANITIZE)
  include(ExternalProject)
  ExternalProject_Add(fuzzers
    SOURCE_DIR ${fuzz}
    BINARY_DIR ${CMAKE_CURRENT_BINARY_DIR}/fuzz
    CMAKE_ARGS -DCMAKE_C_COMPILER=${EN_CLANG} -DEN_WERROR=${EN_WERROR}
    BUILD_ALWAYS ON INSTALL_COMMAND "")
  foreach(target ${fuzz_targets})
    # found_*: new inputs, kept from run to run; a reproducer of a failure is written to crash-*, timeout-*, oom-* beside it
    set(found ${CMAKE_CURRENT_BINARY_DIR}/fuzz/found_${target})
    file(MAKE_DIRECTORY ${found})
    set(seconds ${EN_FUZZ_SECONDS})
    if(target STREQUAL checkpoint)               # short inputs: less to look for
      math(EXPR seconds "${EN_FUZZ_SECONDS} * 3 / 4")
    endif()
    add_test(NAME test_fuzz_${target} WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/fuzz
      COMMAND ${CMAKE_CURRENT_BINARY_DIR}/fuzz/fuzz_${target} -max_total_time=${seconds} -seed=1 -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=4096
              -print_final_stats=1 -artifact_prefix=${CMAKE_CURRENT_BINARY_DIR}/fuzz/${target}- ${found} ${fuzz}/corpus/${target})
    set_tests_properties(test_fuzz_${target} PROPERTIES TIMEOUT 300 ${EN_COMPUTES} LABELS slow ENVIRONMENT "ASAN_OPTIONS=quarantine_size_mb=32")
  endforeach()
endif()
