// The root of a free-order search in a network too large for visited sets.
#pragma once

#include "planner/k_cycle.hpp"

namespace orbitsplit::planner {

// Bisects the root (root_bisection.hpp) repeatedly: with k-cycle elimination of a larger k where the relaxed optimum
// repeats a node, else with narrower intervals, until neither is affordable or helps. Replaces the tables and their
// least-loss relaxation by those of the returned root.
Root explore_root_k_cycle(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                          Tables& t, Relaxation& least, Incumbent incumbent);

}  // namespace orbitsplit::planner
