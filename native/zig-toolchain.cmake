# The C and C++ compiler of the `ziglang` wheel, for a machine without one and
# for a glibc older than this machine's. Wants -DZIG=<path of zig> and
# -DZIG_TARGET=<arch>-linux-gnu.<glibc>.

list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)

string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${ZIG_TARGET}")
set(CMAKE_SYSTEM_NAME Linux)

set(CMAKE_C_COMPILER "${CMAKE_CURRENT_LIST_DIR}/zig-compiler" "${ZIG}" cc)
set(CMAKE_CXX_COMPILER "${CMAKE_CURRENT_LIST_DIR}/zig-compiler" "${ZIG}" c++)
set(CMAKE_C_COMPILER_TARGET "${ZIG_TARGET}")
set(CMAKE_CXX_COMPILER_TARGET "${ZIG_TARGET}")

# `zig ar` is one program with a word behind it, and CMAKE_AR holds one word only.
set(CMAKE_AR "${ZIG}")
set(CMAKE_RANLIB "${ZIG}")
foreach(lang C CXX)
  set(CMAKE_${lang}_COMPILER_AR "${ZIG}")
  set(CMAKE_${lang}_COMPILER_RANLIB "${ZIG}")
  set(CMAKE_${lang}_ARCHIVE_CREATE "<CMAKE_AR> ar qc <TARGET> <LINK_FLAGS> <OBJECTS>")
  set(CMAKE_${lang}_ARCHIVE_APPEND "<CMAKE_AR> ar q <TARGET> <LINK_FLAGS> <OBJECTS>")
  set(CMAKE_${lang}_ARCHIVE_FINISH "<CMAKE_RANLIB> ranlib <TARGET>")
endforeach()

# zig turns the undefined-behaviour sanitizer on by itself where no -O is given.
set(CMAKE_C_FLAGS_INIT "-fno-sanitize=undefined")
set(CMAKE_CXX_FLAGS_INIT "-fno-sanitize=undefined")

# Nothing of the building machine may be found and linked.
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_FIND_ROOT_PATH /nonexistent)
