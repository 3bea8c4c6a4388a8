// The options of a solve, with those that only our own tests set.
#pragma once

#include "orbitsplit/planner.hpp"

namespace orbitsplit::planner {

struct Options : SolveOptions {
    // Free order: size of the ng-set, the nodes that bounds keep from repeating. Each may double the work.
    int max_ng_size = 16;
    // Free order of up to this many nodes, at most 64, tells visited sets apart by one bit for each node. Of more
    // nodes bounds eliminate k-cycles (k_cycle.hpp) and sets are told apart by a hash.
    int max_bitset_nodes = 64;
};

// Of a valid problem.
Solution solve(const Problem& problem, const Options& options);

}  // namespace orbitsplit::planner
