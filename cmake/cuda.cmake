# Says whether CUDA is there. This version has no device code, so nothing else depends on it.
find_program(DSV3_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
mark_as_advanced(DSV3_NVCC)
if(DSV3_NVCC)
  message(STATUS "CUDA: found (${DSV3_NVCC}), not used: this version serves on CPUs only")
else()
  message(STATUS "CUDA: not found, not needed: this version serves on CPUs only")
endif()
