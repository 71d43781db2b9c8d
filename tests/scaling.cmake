# `effnet scaling`: its model, the files it reads, and the command from outside.
en_test(test_scaling_cluster test_scaling_cluster.c LIBS en_trainer)
target_compile_definitions(test_scaling_cluster PRIVATE EN_CLUSTERS="${CMAKE_SOURCE_DIR}/launch/clusters")
