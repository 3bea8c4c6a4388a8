#include "orbitsplit/version.hpp"

namespace orbitsplit {

const char* version() { return ORBITSPLIT_VERSION_STRING; }

}  // namespace orbitsplit
