# The program from outside, as users start it: with mpirun, signals, bad input, kills.  Each binary makes its own data.
foreach(subject ranks resume watch launch errors eval hostile pack bench doctor diverge exchange optimizer stages recipes search pixels scaling buckets freeze)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test_program_${subject}.c)
    en_test(test_program_${subject} test_program_${subject}.c program.c program_files.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 900)
    target_include_directories(test_program_${subject} PRIVATE ${HDF5_C_INCLUDE_DIRS})
    target_compile_definitions(test_program_${subject} PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                               EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}" EN_TEST_DATA="${EN_TEST_DATA}"
                               EN_CLUSTER="${CMAKE_CURRENT_LIST_DIR}/cluster/cluster")
    add_dependencies(test_program_${subject} effnet)
    if(subject MATCHES "^(watch|launch|errors|doctor|diverge|search|scaling)$")
      set_tests_properties(test_program_${subject} PROPERTIES ${EN_WAITS})
    else()
      set_tests_properties(test_program_${subject} PROPERTIES ${EN_RANKS})
    endif()
  endif()
endforeach()
target_sources(test_program_optimizer PRIVATE oracle.c)
# Sanitizers see what these are made of in their unit tests; here they would look at mpirun's leaks and at the same step once more.
set_tests_properties(test_program_scaling test_program_buckets PROPERTIES DISABLED $<BOOL:${EN_SANITIZE}>)

# The comparison with torchvision works, whatever its figures: on a few drawn pictures, once.
find_program(EN_PYTHON_WITH_TORCH python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(EN_PYTHON_WITH_TORCH)
  add_test(NAME test_compare_data COMMAND sh -c [[d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && "$1" synth "$d/x" --train-per-class 3 > "$d/log" &&
    "$2" "$3" "$d/x/train" --images 20 --rounds 1 --effnet "$1"]] sh $<TARGET_FILE:effnet> ${EN_PYTHON_WITH_TORCH} ${CMAKE_CURRENT_LIST_DIR}/peer/bench_data.py)
  set_tests_properties(test_compare_data PROPERTIES TIMEOUT 300 ${EN_COMPUTES} SKIP_RETURN_CODE 77 ENVIRONMENT "${EN_MPI_TEST_ENV}")
endif()
