# Whole networks on the emulated backend: test_net.c and test_golden.c, compiled once more with EN_TEST_CUDA.  The backend is found as
# one that is linked in (kernels/backend.c).  EN_FOLD_LEAST=0: the images here are small, and folds are taken all the same.
if(NOT EN_CUDAEMU_MODES)
  return()
endif()
add_library(en_reference_cuda STATIC oracle_net.c net_help.c oracle.c)
target_compile_definitions(en_reference_cuda PUBLIC EN_TEST_CUDA)
target_include_directories(en_reference_cuda PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_reference_cuda PUBLIC en_trainer PRIVATE en_warnings)

foreach(mode ${EN_CUDAEMU_MODES})
  if(NOT mode STREQUAL race)                            # what the checker can find it finds in the passes' own tests
    en_cuda_backend(${mode})
    foreach(subject net golden)
      set(name test_cuda_${subject}_${mode})
      en_test(${name} test_${subject}.c LIBS en_reference_cuda cuda_backend_${mode} en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 900)
      target_include_directories(${name} PRIVATE ${HDF5_C_INCLUDE_DIRS})
      target_compile_definitions(${name} PRIVATE EN_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
      target_link_options(${name} PRIVATE LINKER:-u,en_cuda_abi,-u,en_cuda_probe,-u,en_cuda_open)
      set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS ON)
      set_tests_properties(${name} PROPERTIES PROCESSORS 2 ENVIRONMENT
        "OMP_WAIT_POLICY=passive;CUDAEMU_ORDER=random;CUDAEMU_STREAMS=random;CUDAEMU_PROTECT=1;EN_FOLD_LEAST=0")
    endforeach()
  endif()
endforeach()
