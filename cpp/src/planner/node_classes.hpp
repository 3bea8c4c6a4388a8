// Equal nodes, recognised once.
//
// Nodes of a class have equal memory, times and external links, and links of equal bandwidth and latency to the same
// classes: the coarsest such partition (a bisimulation; Paige and Tarjan, SIAM Journal on Computing 1987). Every walk
// over the network is a walk over classes, and a walk over classes can start on any node of its first class. In the
// layered problem a node is a class at a position in the chain, in fixed order, so that it counts the loss, the maximum
// and the stages exactly: the optimum bounds every plan. It leaves out only that a plan repeats no node. Where the network
// has a chain of these classes that repeats none, that chain is an optimal plan.
//
// Nodes that can be exchanged have one class, and so do those of a symmetric network, such as a constellation of equal
// satellites, where no two nodes can be exchanged alone.
#pragma once

#include <cstddef>
#include <vector>

#include "planner/options.hpp"
#include "planner/root.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit::planner {

struct ClassBound {
    double lower_bound_s = 0;  // of every plan
    std::size_t labels = 0;    // of the search in the layered problem
};

// By node, numbered by their first nodes; empty if there are more than `most` classes, or at the time limit.
std::vector<int> node_classes(const Problem& problem, std::size_t most, const TimeLimit& time_limit);

// Bounds plans by walks over classes, and offers a plan along the best one. A bound of 0 where no nodes are equal, where
// there are too many classes, with pins of layers or required nodes, and where tokens return to the first node.
ClassBound bound_by_classes(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                            Incumbent& incumbent);

}  // namespace orbitsplit::planner
