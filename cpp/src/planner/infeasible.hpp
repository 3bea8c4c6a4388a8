// Why a problem has no plan, in one sentence with the numbers.
#pragma once

#include <string>

#include "planner/cost_to_go.hpp"
#include "planner/options.hpp"

namespace orbitsplit::planner {

// Why no plan exists, if sums of memory already show it: a layer that no node can hold, or all layers together; else
// "".
std::string trivially_infeasible(const Problem& problem);

// `least` is the least-loss relaxation of t, which was made with the options. Only called if no plan exists.
std::string explain_infeasible(const Problem& problem, const Tables& t, const Relaxation& least,
                               const Options& options, const TimeLimit& time_limit);

}  // namespace orbitsplit::planner
