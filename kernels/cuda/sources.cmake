# The sources of the CUDA backend, for the plugin (../CMakeLists.txt) and for the emulated backend (tests/cuda.cmake).
set(EN_CUDA_SOURCES backend table norm sums residual gemm tall pointwise fold depthwise_forward depthwise_backward depthwise_plain stem project squeeze
    head loss optimizer noise)
list(TRANSFORM EN_CUDA_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
list(TRANSFORM EN_CUDA_SOURCES APPEND .cu)
