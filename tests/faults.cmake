# Faults on purpose: --inject, and what jobs make of faults.
function(en_fault_program name)
  target_include_directories(${name} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(${name} PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                             EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}")
  add_dependencies(${name} effnet)
endfunction()

en_test(test_program_inject test_program_inject.c program.c program_files.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 600)
en_fault_program(test_program_inject)
set_tests_properties(test_program_inject PROPERTIES PROCESSORS 2)
