#include "orbitsplit/error.hpp"
