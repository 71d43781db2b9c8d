# A folder of real and hostile images that is not part of the repository; tests that want it skip without it.
set(EN_TEST_DATA ${CMAKE_SOURCE_DIR}/../shared/data CACHE PATH "folder with hostile/ and imagenet-sample/ (optional)")

foreach(subject decode crop_decode resize view sampler folder loader augmented cache)
  en_test(test_data_${subject} test_data_${subject}.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG)
  target_compile_definitions(test_data_${subject} PRIVATE EN_TEST_DATA="${EN_TEST_DATA}"
                             EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
endforeach()

# Operations against golden pixels, as compiled for this machine and once more without the AVX2 clones; policies; pairs.
en_test(test_data_augment test_data_augment.c LIBS en_data ${HDF5_C_LIBRARIES})
en_test(test_data_augment_plain test_data_augment.c ${CMAKE_SOURCE_DIR}/data/augment_ops.c LIBS en_data ${HDF5_C_LIBRARIES})
target_compile_definitions(test_data_augment_plain PRIVATE EN_NO_CLONES)
foreach(test test_data_augment test_data_augment_plain)
  target_include_directories(${test} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(${test} PRIVATE EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
  target_compile_options(${test} PRIVATE -ffp-contract=off -fno-trapping-math)
endforeach()
en_test(test_data_policy test_data_policy.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG)
en_test(test_data_mix test_data_mix.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG)

foreach(test pack pack_whole pack_hostile)
  en_test(test_data_${test} test_data_${test}.c pack_help.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG ZLIB::ZLIB ${HDF5_C_LIBRARIES})
  target_include_directories(test_data_${test} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(test_data_${test} PRIVATE EN_TEST_DATA="${EN_TEST_DATA}")
endforeach()
# between two reads of one call a file may change: read is wrapped
en_test(test_data_odd test_data_odd.c data_help.c LIBS en_data JPEG::JPEG PNG::PNG)
target_link_options(test_data_odd PRIVATE -Wl,--wrap=read)
foreach(subject loader augmented)
  target_sources(test_data_${subject} PRIVATE data_stream.c)
endforeach()
