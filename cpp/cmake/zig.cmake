# Compile for another C library, or for an older glibc, with zig: it brings clang, libc++ and the libraries of its targets.
#   pip install ziglang
#   cmake --preset musl && cmake --build --preset musl && ctest --preset musl
# ORBITSPLIT_ZIG_TARGET is a target as zig names it, such as x86_64-linux-musl or x86_64-linux-gnu.2.17.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ORBITSPLIT_ZIG_TARGET ORBITSPLIT_ZIG)
if(NOT ORBITSPLIT_ZIG_TARGET)
  message(FATAL_ERROR "ORBITSPLIT_ZIG_TARGET is not set; it must be a target of zig, such as x86_64-linux-musl")
endif()
find_program(ORBITSPLIT_ZIG NAMES zig python-zig REQUIRED)

string(REGEX MATCH "^[^-]+" zig_processor ${ORBITSPLIT_ZIG_TARGET})
if(NOT zig_processor STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR)
  set(CMAKE_SYSTEM_NAME Linux)
  set(CMAKE_SYSTEM_PROCESSOR ${zig_processor})
endif()
set(CMAKE_CXX_COMPILER ${ORBITSPLIT_ZIG} c++)
set(CMAKE_CXX_FLAGS_INIT "-target ${ORBITSPLIT_ZIG_TARGET}")
# An ar of the machine may not know the processor of the target.
set(CMAKE_CXX_ARCHIVE_CREATE "${ORBITSPLIT_ZIG} ar qcs <TARGET> <LINK_FLAGS> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "${ORBITSPLIT_ZIG} ar qs <TARGET> <LINK_FLAGS> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
