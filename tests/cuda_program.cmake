# The CUDA plugin over the emulated backend: the real program, on one and two ranks, with --device cuda and no GPU.
if(NOT EN_CUDAEMU_MODES OR NOT TARGET cuda_backend_plain AND NOT TARGET cuda_backend_asan)
  return()
endif()
list(GET EN_CUDAEMU_MODES 0 mode)                        # plain, or asan where the program is built with it
set(comm ${CMAKE_SOURCE_DIR}/comm)
add_library(effnet_cuda_emu MODULE ${comm}/nccl.c ${comm}/nccl_watch.c ${comm}/nccl_api.c)
set_target_properties(effnet_cuda_emu PROPERTIES LINKER_LANGUAGE CXX C_STANDARD 17)
target_include_directories(effnet_cuda_emu PRIVATE ${CMAKE_BINARY_DIR}/include/comm ${CMAKE_BINARY_DIR}/include/kernels)
target_include_directories(effnet_cuda_emu SYSTEM PRIVATE ${EN_CUDAEMU_INCLUDES})
target_link_libraries(effnet_cuda_emu PRIVATE en_warnings
  -Wl,--whole-archive cuda_backend_${mode} cudaemu_nccl_${mode} -Wl,--no-whole-archive cudaemu_${mode} MPI::MPI_C)

en_test(test_program_cuda test_program_cuda.c program.c program_files.c LIBS en_trainer ${HDF5_C_LIBRARIES} TIMEOUT 1500)
target_include_directories(test_program_cuda PRIVATE ${HDF5_C_INCLUDE_DIRS})
target_compile_definitions(test_program_cuda PRIVATE EN_PROGRAM="$<TARGET_FILE:effnet>" EN_MPIEXEC="${MPIEXEC_EXECUTABLE}"
                           EN_RUN_SCRIPT="${CMAKE_SOURCE_DIR}/launch/run" EN_MPIEXEC_NUMPROC="${MPIEXEC_NUMPROC_FLAG}" EN_TEST_DATA="${EN_TEST_DATA}"
                           EN_CUDA_EMU="$<TARGET_FILE:effnet_cuda_emu>")
add_dependencies(test_program_cuda effnet effnet_cuda_emu)
set_tests_properties(test_program_cuda PROPERTIES ${EN_RANKS})

if(TARGET test_program_doctor)
  target_compile_definitions(test_program_doctor PRIVATE EN_CUDA_EMU="$<TARGET_FILE:effnet_cuda_emu>")
  add_dependencies(test_program_doctor effnet_cuda_emu)
endif()
