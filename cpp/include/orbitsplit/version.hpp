// The version of these headers, for #if, and that of the library that a program runs with.
//
//     ORBITSPLIT_VERSION_MAJOR  ORBITSPLIT_VERSION_MINOR  ORBITSPLIT_VERSION_PATCH    numbers
//     ORBITSPLIT_VERSION_STRING                                                       "major.minor.patch"
//
// A test compares them with CMakeLists.txt. docs/reference/versions.md says which versions are compatible.
#pragma once

#include "orbitsplit/export.hpp"

#define ORBITSPLIT_VERSION_MAJOR 0
#define ORBITSPLIT_VERSION_MINOR 1
#define ORBITSPLIT_VERSION_PATCH 0
#define ORBITSPLIT_VERSION_STRING "0.1.0"

namespace orbitsplit {

// The version of the library, which is another one than that of the headers if a shared library was replaced.
ORBITSPLIT_API const char* version();

}  // namespace orbitsplit
