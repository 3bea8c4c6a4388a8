// Why a problem has no plan, in one sentence with the numbers.
#pragma once

#include <string>

#include "planner/bounds.hpp"

namespace orbitsplit::planner {

// least is the least-loss relaxation of t, which was made with max_tracked; called when no plan exists.
std::string explain_infeasible(const Problem& problem, const Tables& t, const Relaxation& least,
                               int max_tracked);

}  // namespace orbitsplit::planner
