# What ggml's Vulkan backend finds in place of an SDK:
#
#   WORKER_VULKAN_INCLUDE   holds vulkan/, vk_video/ and spirv/
#   WORKER_VULKAN_LOADER    the loader's source, compiled here and carried; or empty, and then
#   WORKER_VULKAN_LIBRARY   the machine's libvulkan.so, to link against
#   WORKER_GLSLC            the shader compiler

if(WORKER_VULKAN_LOADER)
  # Its own build wants pkg-config and window systems; a server needs neither.
  set(sources allocation cJSON debug_utils extension_manual gpa_helper loader loader_environment
      loader_json loader_linux log settings terminator trampoline unknown_function_handling wsi)
  list(TRANSFORM sources PREPEND "${WORKER_VULKAN_LOADER}/")
  list(TRANSFORM sources APPEND ".c")
  add_library(vulkan-loader SHARED EXCLUDE_FROM_ALL ${sources})
  set_target_properties(vulkan-loader PROPERTIES
    OUTPUT_NAME vulkan VERSION 1.0.0 SOVERSION 1 C_VISIBILITY_PRESET hidden
    # Not among the programs: those would load it before the machine's own.
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/vulkan-loader")
  target_include_directories(vulkan-loader PRIVATE
    "${WORKER_VULKAN_INCLUDE}" "${WORKER_VULKAN_LOADER}" "${WORKER_VULKAN_LOADER}/generated")
  target_compile_definitions(vulkan-loader PRIVATE
    _GNU_SOURCE VK_ENABLE_BETA_EXTENSIONS HAVE_SECURE_GETENV LOADER_ENABLE_LINUX_SORT
    SYSCONFDIR="/etc" FALLBACK_CONFIG_DIRS="/etc/xdg" FALLBACK_DATA_DIRS="/usr/local/share:/usr/share")
  target_link_libraries(vulkan-loader PRIVATE ${CMAKE_DL_LIBS} m pthread)
  set(library vulkan-loader)
else()
  set(library "${WORKER_VULKAN_LIBRARY}")
endif()

# ggml asks find_package for a file and gets the target, with the headers.
add_library(worker-vulkan INTERFACE)
target_include_directories(worker-vulkan INTERFACE "${WORKER_VULKAN_INCLUDE}")
target_link_libraries(worker-vulkan INTERFACE ${library})
add_library(Vulkan::Vulkan ALIAS worker-vulkan)
set(Vulkan_LIBRARY "${WORKER_VULKAN_INCLUDE}" CACHE PATH "" FORCE)  # only asked whether it is set
set(Vulkan_INCLUDE_DIR "${WORKER_VULKAN_INCLUDE}" CACHE PATH "" FORCE)
set(Vulkan_GLSLC_EXECUTABLE "${WORKER_GLSLC}" CACHE FILEPATH "" FORCE)
set(SPIRV-Headers_DIR "${CMAKE_BINARY_DIR}/spirv-headers" CACHE PATH "" FORCE)
file(WRITE "${SPIRV-Headers_DIR}/SPIRV-HeadersConfig.cmake" "# the headers lie beside Vulkan's\n")

# The program that writes the shaders out runs on the building machine.
if(ZIG)
  set(GGML_VULKAN_SHADERS_GEN_TOOLCHAIN "${CMAKE_BINARY_DIR}/building-machine.cmake")
  file(WRITE "${GGML_VULKAN_SHADERS_GEN_TOOLCHAIN}"
    "set(ZIG \"${ZIG}\")\nset(ZIG_TARGET ${CMAKE_HOST_SYSTEM_PROCESSOR}-linux-gnu.2.28)\ninclude(\"${CMAKE_CURRENT_LIST_DIR}/zig-toolchain.cmake\")\n")
endif()
