# The sources of the CUDA backend, for the plugin (../CMakeLists.txt) and for the emulated backend (tests/cuda.cmake).
file(GLOB EN_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cu)
