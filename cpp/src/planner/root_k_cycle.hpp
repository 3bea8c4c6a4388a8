// The root of a free-order search in a network too large to track which nodes are used.
#pragma once

#include "planner/k_cycle.hpp"

namespace orbitsplit::planner {

// Deepens the root (deep_root.hpp) again and again: with places that remember more where the relaxed optimum repeats a
// node, else with narrower intervals, until neither is affordable or helps. The tables and their least loss become
// those of the root's relaxations.
Root lengthen_root(const Problem& problem, const SolveOptions& options, const Clock& clock, Tables& t,
                   Relaxation& least, Incumbent incumbent);

}  // namespace orbitsplit::planner
