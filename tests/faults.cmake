# Faults on purpose: --inject, and what jobs make of faults.
function(en_fault_program name)
  target_include_directories(${name} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(${name} PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                             EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}")
  add_dependencies(${name} effnet)
endfunction()

en_test(test_program_inject test_program_inject.c program.c program_files.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 600)
en_fault_program(test_program_inject)
set_tests_properties(test_program_inject PROPERTIES ${EN_WAITS})

# The harness: a short form here, the long one by hand (tests/faults --count 200).
add_executable(faults faults/faults.c faults/kinds.c faults/trial.c faults/bench.c program.c program_files.c)
target_include_directories(faults PRIVATE ${CMAKE_SOURCE_DIR}/tests ${CMOCKA_INCLUDE})
target_link_libraries(faults PRIVATE en_warnings en_trainer ${HDF5_C_LIBRARIES} ${CMOCKA_LIBRARY} m)
target_compile_definitions(faults PRIVATE EN_CLUSTER="${CMAKE_SOURCE_DIR}/tests/cluster/cluster")
en_fault_program(faults)
if(NOT EN_SANITIZE)            # what the program does with a fault is in test_program_inject and _diverge, which the sanitizers see
  add_test(NAME faults COMMAND faults)
  set_tests_properties(faults PROPERTIES TIMEOUT 900 ${EN_WAITS})
endif()
