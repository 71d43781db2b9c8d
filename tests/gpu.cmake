# What needs nvcc, and a GPU to say something: no kernel uses local memory; then the tests of cuda.cmake and cuda_program.cmake once
# more, on the real backend and the real libraries, as test_gpu_*.  Without a GPU these skip.  tests/gpu_check runs them from
# a build that was made elsewhere, so nothing here may rely on absolute paths: they run in the source folder.
if(NOT TARGET en_cuda_passes)
  return()
endif()

# ---- local memory: ptxas says it while it compiles, cuda_ptxas keeps it beside each object ---------------------------------
find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_FOUND)
  set_target_properties(en_cuda_passes PROPERTIES CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/cuda_ptxas)
  target_compile_options(en_cuda_passes PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
  add_test(NAME test_cuda_spills COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/cuda_spills.py --self-test ${CMAKE_CUDA_COMPILER}
    --accepted ${CMAKE_CURRENT_LIST_DIR}/cuda_spills.txt "$<JOIN:$<TARGET_OBJECTS:en_cuda_passes>,.ptxas;>.ptxas" COMMAND_EXPAND_LISTS)
  set_tests_properties(test_cuda_spills PROPERTIES TIMEOUT 120)
endif()

# ---- the passes -------------------------------------------------------------------------------------------------------
# The backend, found as one that is linked in (kernels/backend.c): tests need no plugin.  Shared, because it weighs 10 MB.
add_library(en_cuda_linked SHARED $<TARGET_OBJECTS:en_cuda_passes>)
set_target_properties(en_cuda_linked PROPERTIES LINKER_LANGUAGE C)
target_link_libraries(en_cuda_linked PRIVATE CUDA::cudart_static CUDA::cublasLt stdc++ INTERFACE en_kernels)
add_library(en_fixture_gpu STATIC fixture.c fixture_bounds.c fixture_operands.c optimizer_help.c oracle.c)
target_compile_definitions(en_fixture_gpu PUBLIC EN_TEST_CUDA)
target_include_directories(en_fixture_gpu PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_fixture_gpu PUBLIC en_kernels PRIVATE en_warnings)

# en_gpu_test(name source... LIBS library...)
function(en_gpu_test name)
  en_test(${name} ${ARGN} TIMEOUT 900)
  target_link_options(${name} PRIVATE LINKER:-u,en_cuda_abi,-u,en_cuda_probe,-u,en_cuda_open)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C ENABLE_EXPORTS ON BUILD_RPATH_USE_ORIGIN ON)
  set_tests_properties(${name} PROPERTIES WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} RESOURCE_LOCK gpu SKIP_REGULAR_EXPRESSION "cuda: SKIPPED|device cuda: ")
endfunction()

foreach(subject pointwise depthwise conv stem project residual activation join pool head batchnorm optimizer optimizer_steps noise queue choice)
  en_gpu_test(test_gpu_${subject} test_kernels_${subject}.c LIBS en_fixture_gpu en_cuda_linked)
endforeach()
if(NOT TARGET en_trainer)
  return()
endif()

# ---- whole networks, the program --------------------------------------------------------------------------------------
add_library(en_reference_gpu STATIC oracle_net.c net_help.c oracle.c)
target_compile_definitions(en_reference_gpu PUBLIC EN_TEST_CUDA)
target_include_directories(en_reference_gpu PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE})
target_link_libraries(en_reference_gpu PUBLIC en_trainer PRIVATE en_warnings)
en_gpu_test(test_gpu_net    test_net.c    LIBS en_reference_gpu en_cuda_linked)
en_gpu_test(test_gpu_golden test_golden.c LIBS en_reference_gpu en_cuda_linked ${HDF5_C_LIBRARIES})
target_include_directories(test_gpu_golden PRIVATE ${HDF5_C_INCLUDE_DIRS})
target_compile_definitions(test_gpu_golden PRIVATE EN_GOLDEN_DIR="tests/golden")

# test_program_cuda.c with the real plugin; its claims about one GPU, each by its name
if(TARGET effnet_cuda AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/test_program_cuda.c)
  file(RELATIVE_PATH build ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
  add_executable(test_gpu_program test_program_cuda.c program.c program_files.c)
  target_include_directories(test_gpu_program PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMOCKA_INCLUDE} ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(test_gpu_program PRIVATE EN_PROGRAM="${build}/effnet" EN_MPIEXEC="mpiexec" EN_RUN_SCRIPT="launch/run"
    EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}" EN_TEST_DATA="" EN_CUDA_EMU="${build}/libeffnet_cuda.so")
  target_link_libraries(test_gpu_program PRIVATE en_warnings en_trainer ${HDF5_C_LIBRARIES} ${CMOCKA_LIBRARY} m)
  add_dependencies(test_gpu_program effnet effnet_cuda)
endif()

# The comparison with PyTorch works as far as it can without a GPU: on the processor, tiny.
if(Python3_FOUND)
  find_program(EN_PYTHON_WITH_TORCH python3 PATHS /usr/bin NO_DEFAULT_PATH)
  if(EN_PYTHON_WITH_TORCH)
    add_test(NAME test_bench_gpu_dry_run COMMAND ${EN_PYTHON_WITH_TORCH} ${CMAKE_CURRENT_LIST_DIR}/peer/bench_gpu.py --dry-run --effnet $<TARGET_FILE:effnet>)
    set_tests_properties(test_bench_gpu_dry_run PROPERTIES TIMEOUT 300 ${EN_COMPUTES} SKIP_RETURN_CODE 77)
  endif()
endif()
