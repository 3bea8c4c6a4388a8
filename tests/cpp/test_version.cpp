// The version has three sources: CMakeLists.txt, the header, and the library.
#include <string_view>

#include "check.hpp"
#include "orbitsplit/version.hpp"

namespace {

std::string of_numbers() {
    return std::to_string(ORBITSPLIT_VERSION_MAJOR) + '.' + std::to_string(ORBITSPLIT_VERSION_MINOR) + '.' +
           std::to_string(ORBITSPLIT_VERSION_PATCH);
}

}  // namespace

int main() {
    CHECK(std::string_view(ORBITSPLIT_VERSION_STRING) == PROJECT_VERSION);
    CHECK(of_numbers() == PROJECT_VERSION);
    CHECK(std::string_view(orbitsplit::version()) == PROJECT_VERSION);
    return failures;
}
