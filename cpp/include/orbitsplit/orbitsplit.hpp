// Everything: errors, problems, costs, the planner, frames and codecs.
#pragma once

#include "orbitsplit/error.hpp"
