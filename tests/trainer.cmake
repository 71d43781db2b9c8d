en_test(test_model test_model.c LIBS en_trainer)
target_compile_definitions(test_model PRIVATE EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")

en_test(test_options test_options.c LIBS en_trainer)
