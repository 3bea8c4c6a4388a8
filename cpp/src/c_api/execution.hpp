// The Execution that a caller's struct asks for.
#pragma once

#include "c_api/status.hpp"
#include "orbitsplit/c_api.h"
#include "orbitsplit/execution.hpp"

namespace orbitsplit::c_api {

inline Execution execution_of(const orbitsplit_execution* given) {
    const orbitsplit_execution known = read_struct(given, "execution");
    Execution execution(known.threads == 0 ? 1 : known.threads);
    if (known.stop != nullptr)
        execution.stop_requested = [stop = known.stop, context = known.stop_context] {
            return stop(context) != 0;
        };
    return execution;
}

}  // namespace orbitsplit::c_api
