// Why a problem has no plan, in one sentence with the numbers.
#pragma once

#include <string>

#include "orbitsplit/planner.hpp"
#include "planner/cost_to_go.hpp"

namespace orbitsplit::planner {

// Why no plan can exist, as far as sums show without a search: a layer that no node holds, or all of them; else "".
std::string infeasible_at_sight(const Problem& problem);

// least is the least-loss relaxation of t, which was made with the options; called when no plan exists.
std::string explain_infeasible(const Problem& problem, const Tables& t, const Relaxation& least,
                               const SolveOptions& options);

}  // namespace orbitsplit::planner
