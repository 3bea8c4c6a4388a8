// Everything: errors, problems, costs, the planner, frames and codecs.
#pragma once

#include "orbitsplit/codec.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/frame.hpp"
