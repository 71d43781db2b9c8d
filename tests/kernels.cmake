# status and randomness; the oracle itself; then every pass of the table against the oracle
en_test(test_status_rng test_status_rng.c LIBS en_kernels Threads::Threads)
en_test(test_oracle     test_oracle.c oracle.c LIBS en_kernels)

add_library(en_fixture STATIC fixture.c oracle.c)
target_include_directories(en_fixture PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_fixture PUBLIC en_kernels PRIVATE en_warnings)
foreach(subject pointwise depthwise stem project residual head batchnorm optimizer)
  en_test(test_kernels_${subject} test_kernels_${subject}.c LIBS en_fixture)
  # more threads than processors are part of the tests: waiting threads must give way
  set_tests_properties(test_kernels_${subject} PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
endforeach()
