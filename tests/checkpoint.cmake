# checkpoints, metrics, dumps: the files of a run
en_test(test_checkpoint        test_checkpoint.c        LIBS en_trainer ${HDF5_C_LIBRARIES})
target_include_directories(test_checkpoint PRIVATE ${HDF5_C_INCLUDE_DIRS})
