include(CMakeFindDependencyMacro)
find_dependency(orbitsplit 0.1)
include("${CMAKE_CURRENT_LIST_DIR}/telemetryTargets.cmake")
