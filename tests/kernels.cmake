# status and randomness; the oracle itself; then every pass of the table against the oracle
en_test(test_status_rng test_status_rng.c LIBS en_kernels Threads::Threads)
en_test(test_oracle     test_oracle.c oracle.c LIBS en_kernels)

add_library(en_fixture STATIC fixture.c fixture_bounds.c fixture_operands.c optimizer_help.c oracle.c)
target_include_directories(en_fixture PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_fixture PUBLIC en_kernels PRIVATE en_warnings)
foreach(subject pointwise depthwise conv stem project residual activation join pool head batchnorm optimizer optimizer_steps noise queue)
  en_test(test_kernels_${subject} test_kernels_${subject}.c LIBS en_fixture)
  # more threads than processors are part of the tests: waiting threads must give way
  set_tests_properties(test_kernels_${subject} PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
endforeach()

en_test(test_kernels_stream test_kernels_stream.c LIBS en_kernels)

# whole networks: the reference in double against differences of its own loss; the net against the reference and PyTorch
add_library(en_reference STATIC oracle_net.c net_help.c oracle.c)
target_include_directories(en_reference PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_reference PUBLIC en_trainer PRIVATE en_warnings)
en_test(test_oracle_net test_oracle_net.c LIBS en_reference TIMEOUT 900)
en_test(test_net        test_net.c        LIBS en_reference)
en_test(test_golden     test_golden.c     LIBS en_reference ${HDF5_C_LIBRARIES})
target_include_directories(test_golden PRIVATE ${HDF5_C_INCLUDE_DIRS})
target_compile_definitions(test_golden PRIVATE EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
set_tests_properties(test_net test_golden PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive TIMEOUT 600)
