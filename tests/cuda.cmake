# The passes of kernels/cuda/ against the same problems and oracles as the cpu's (kernels.cmake), compiled from the same test
# sources with EN_TEST_CUDA.  Without a GPU they run on tests/cudaemu, in each of its modes; EN_TEST_WORK then leaves out
# what a fiber per thread cannot carry (fixture.h).
if(NOT DEFINED EN_CUDAEMU_MODES)
  include(${CMAKE_CURRENT_LIST_DIR}/cudaemu.cmake)
endif()

include_guard()
set(EN_CUDA_SUBJECTS pointwise depthwise conv stem project residual activation join pool head batchnorm optimizer optimizer_steps noise queue choice)
set(EN_TEST_WORK_plain 2e6)
set(EN_TEST_WORK_asan  4e5)
set(EN_TEST_WORK_race  1e5)
set(EN_TEST_WORK_conv  1.3e6)           # in every mode: a 3 x 3 convolution of one tile of positions

if(EN_CUDAEMU_MODES)
  include(${CMAKE_CURRENT_LIST_DIR}/../kernels/cuda/sources.cmake)
  add_library(en_fixture_cuda STATIC fixture.c fixture_bounds.c fixture_operands.c optimizer_help.c oracle.c)
  target_compile_definitions(en_fixture_cuda PUBLIC EN_TEST_CUDA)
  target_include_directories(en_fixture_cuda PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
  target_link_libraries(en_fixture_cuda PUBLIC en_kernels PRIVATE en_warnings)
endif()

# en_cuda_backend(mode): the emulated backend, once per mode, as cuda_backend_<mode>
function(en_cuda_backend mode)
  if(NOT TARGET cuda_backend_${mode})
    en_cudaemu_library(cuda_backend_${mode} MODE ${mode} SOURCES ${EN_CUDA_SOURCES} INCLUDES ${CMAKE_BINARY_DIR}/include/kernels)
  endif()
endfunction()

foreach(mode ${EN_CUDAEMU_MODES})
  en_cuda_backend(${mode})
  foreach(subject ${EN_CUDA_SUBJECTS})
    set(name test_cuda_${subject}_${mode})
    en_test(${name} test_kernels_${subject}.c LIBS en_fixture_cuda cuda_backend_${mode} en_kernels TIMEOUT 600)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
    set(work ${EN_TEST_WORK_${mode}})
    if(subject STREQUAL conv)
      set(work ${EN_TEST_WORK_conv})
    endif()
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "OMP_WAIT_POLICY=passive;CUDAEMU_ORDER=random;CUDAEMU_STREAMS=random;EN_TEST_WORK=${work}")
  endforeach()
endforeach()
