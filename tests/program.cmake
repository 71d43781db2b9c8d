# The program from outside, as users start it: with mpirun, signals, bad input, kills.  Each binary makes its own data.
foreach(subject ranks resume errors eval hostile pack bench)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test_program_${subject}.c)
    en_test(test_program_${subject} test_program_${subject}.c program.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 900)
    target_include_directories(test_program_${subject} PRIVATE ${HDF5_C_INCLUDE_DIRS})
    target_compile_definitions(test_program_${subject} PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                               EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}" EN_TEST_DATA="${EN_TEST_DATA}")
    add_dependencies(test_program_${subject} effnet)
    set_tests_properties(test_program_${subject} PROPERTIES PROCESSORS 2)
  endif()
endforeach()
