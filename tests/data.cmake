# A folder of real and hostile images that is not part of the repository; tests that want it skip without it.
set(EN_TEST_DATA ${CMAKE_SOURCE_DIR}/../shared/data CACHE PATH "folder with hostile/ and imagenet-sample/ (optional)")

foreach(subject decode resize sampler folder loader)
  en_test(test_data_${subject} test_data_${subject}.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG)
  target_compile_definitions(test_data_${subject} PRIVATE EN_TEST_DATA="${EN_TEST_DATA}")
endforeach()
