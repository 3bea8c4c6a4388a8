// Everything: errors, problems, costs, the planner, frames, codecs, encoders, quantised weights and layers of decoders.
#pragma once

#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/cost.hpp"
#include "orbitsplit/decoder.hpp"
#include "orbitsplit/encoder.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"
#include "orbitsplit/planner.hpp"
#include "orbitsplit/problem.hpp"
#include "orbitsplit/weights.hpp"
