# Warnings that every target of ours is built with; warnings are errors.
add_library(dsv3_warnings INTERFACE)
target_compile_options(dsv3_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align -Wno-missing-field-initializers -Werror>)
