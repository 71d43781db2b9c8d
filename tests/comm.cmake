# The same claims on self and on 1 to 5 MPI ranks.  A test machine may have fewer cores than that, and may run as root.
set(EN_MPI_TEST_ENV OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
    PRTE_MCA_rmaps_default_mapping_policy=:OVERSUBSCRIBE PRTE_MCA_hwloc_default_binding_policy=none   # Open MPI 5
    ASAN_OPTIONS=detect_leaks=0)     # Open MPI leaks from plug-ins that it unloads: nothing that a suppression could name

# en_mpi_test(name ranks command...): the command under mpirun
function(en_mpi_test name ranks)
  add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT 180 ${EN_RANKS} ENVIRONMENT "${EN_MPI_TEST_ENV};EN_TEST_RANKS=${ranks}")
endfunction()

en_test(test_comm test_comm.c LIBS en_comm MPI::MPI_C TIMEOUT 180)
foreach(ranks 1 2 3 4 5)                 # small sums go another way beyond four
  en_mpi_test(test_comm_${ranks}_ranks ${ranks} $<TARGET_FILE:test_comm>)
endforeach()

en_test(test_comm_mail test_comm_mail.c LIBS en_comm TIMEOUT 180)
foreach(ranks 1 2 4)
  en_mpi_test(test_comm_mail_${ranks}_ranks ${ranks} $<TARGET_FILE:test_comm_mail>)
endforeach()

en_test(test_comm_watch test_comm_watch.c LIBS en_comm)

en_test(test_comm_tensor test_comm_tensor.c LIBS en_comm TIMEOUT 180)
set_target_properties(test_comm_tensor PROPERTIES ENABLE_EXPORTS ON)     # it plays the plugin: found by dlsym
foreach(ranks 1 2 3 4)
  en_mpi_test(test_comm_tensor_${ranks}_ranks ${ranks} $<TARGET_FILE:test_comm_tensor>)
endforeach()

add_executable(test_comm_open test_comm_open.c)
target_link_libraries(test_comm_open PRIVATE en_warnings en_comm MPI::MPI_C)
add_test(NAME test_comm_plain_start_is_self COMMAND test_comm_open self)
add_test(NAME test_comm_refuses_srun_without_mpi COMMAND test_comm_open refused "srun --mpi=pmix")
set_tests_properties(test_comm_refuses_srun_without_mpi PROPERTIES ENVIRONMENT SLURM_STEP_NUM_TASKS=4)
add_test(NAME test_comm_refuses_another_mpis_launcher COMMAND test_comm_open refused "belongs to another MPI")
set_tests_properties(test_comm_refuses_another_mpis_launcher PROPERTIES ENVIRONMENT "${EN_MPI_TEST_ENV};PMI_SIZE=4;PMI_RANK=0")
add_test(NAME test_comm_abort_ends_all_ranks_with_its_code COMMAND sh -c
  "'${MPIEXEC_EXECUTABLE}' -n 3 '$<TARGET_FILE:test_comm_open>' abort 5; code=$?; echo \"exit code $code\"; test $code -eq 5")
set_tests_properties(test_comm_abort_ends_all_ranks_with_its_code PROPERTIES TIMEOUT 60 ENVIRONMENT "${EN_MPI_TEST_ENV}")

add_test(NAME test_comm_names_a_rank_that_hangs COMMAND sh -c
  "'${MPIEXEC_EXECUTABLE}' -n 3 '$<TARGET_FILE:test_comm_open>' hang 2>&1; code=$?; echo \"exit code $code\"")
set_tests_properties(test_comm_names_a_rank_that_hangs PROPERTIES TIMEOUT 40 ENVIRONMENT "${EN_MPI_TEST_ENV};EFFNET_STALL_S=1.5"
  PASS_REGULAR_EXPRESSION "rank 2 on host [^\n]*stands in start-up for 1.[^\n]*2 ranks wait for it in a sum(.|\n)*exit code 5\n")
add_test(NAME test_comm_refuses_a_limit_that_is_no_number COMMAND ${MPIEXEC_EXECUTABLE} -n 2 $<TARGET_FILE:test_comm_open>
  refused "EFFNET_STALL_S")
set_tests_properties(test_comm_refuses_a_limit_that_is_no_number PROPERTIES TIMEOUT 40 ENVIRONMENT "${EN_MPI_TEST_ENV};EFFNET_STALL_S=soon")

add_executable(test_comm_speed test_comm_speed.c)          # a table for comm/README.md; ctest does not run it
target_link_libraries(test_comm_speed PRIVATE en_warnings en_comm MPI::MPI_C)

