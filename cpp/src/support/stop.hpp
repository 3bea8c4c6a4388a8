// Stops a call at the caller's request.
#pragma once

#include "orbitsplit/error.hpp"
#include "orbitsplit/execution.hpp"

namespace orbitsplit {

inline void throw_if_stopped(const Execution& execution) {
    if (execution.stop_requested && execution.stop_requested())
        throw StoppedError("the call was stopped at the caller's request");
}

}  // namespace orbitsplit
