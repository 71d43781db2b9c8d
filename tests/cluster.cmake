# Jobs over several machines, on one: cluster/cluster makes them out of namespaces.  Where the kernel or the user may not, tests skip.
add_executable(cluster_wire cluster/wire.c)
target_link_libraries(cluster_wire PRIVATE en_warnings)
add_executable(cluster_rank cluster/rank.c)
target_link_libraries(cluster_rank PRIVATE en_warnings en_comm)

en_test(test_program_cluster test_program_cluster.c program.c program_files.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 600)
target_include_directories(test_program_cluster PRIVATE ${HDF5_C_INCLUDE_DIRS})
target_compile_definitions(test_program_cluster PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                           EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}"
                           EN_CLUSTER="${CMAKE_SOURCE_DIR}/tests/cluster/cluster" EN_WIRE="$<TARGET_FILE:cluster_wire>" EN_RANK="$<TARGET_FILE:cluster_rank>")
add_dependencies(test_program_cluster effnet cluster_wire cluster_rank)
set_tests_properties(test_program_cluster PROPERTIES ${EN_WAITS} DISABLED $<BOOL:${EN_SANITIZE}>)      # launchers and links: nothing for sanitizers
