// Everything: errors, problems, costs, the planner, frames and codecs.
#pragma once

#include "orbitsplit/codec.hpp"
#include "orbitsplit/cost.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/frame.hpp"
#include "orbitsplit/planner.hpp"
#include "orbitsplit/problem.hpp"
