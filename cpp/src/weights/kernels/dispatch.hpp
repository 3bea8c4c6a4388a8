// The kernels of the instruction set that support/isa.hpp chose.
#pragma once

#include "weights/kernels/kernels.hpp"

namespace orbitsplit::weights {

// Those of active_isa(). A set without its own kernels for a topic uses those of an earlier set.
Kernels active();

}  // namespace orbitsplit::weights
