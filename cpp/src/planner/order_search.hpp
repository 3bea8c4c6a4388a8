// Incumbents for free order by local search over orders of the nodes, each explored as a fixed order.
#pragma once

#include <vector>

#include "planner/options.hpp"
#include "planner/root.hpp"
#include "support/time_limit.hpp"

namespace orbitsplit::planner {

// The parts of a problem that do not depend on its nodes, and the pins.
Problem without_nodes(const Problem& problem);

// The times of layers and stages on these nodes, in this order, in which one may occur several times.
void copy_times_of_nodes(const Problem& problem, const std::vector<int>& nodes, Problem& result);

// Improves the incumbent of a free-order problem by moving and swapping nodes until neither helps, most_orders were
// tried or time is over. Without an incumbent it first looks for one: by index, then along the fastest links.
void improve_by_orders(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                       int most_orders, Incumbent& incumbent);

// The same along links, for networks in which most pairs of nodes have none: the incumbent's chain loses, gains or
// exchanges a node. Does nothing without an incumbent.
void improve_by_chains(const Problem& problem, const Options& options, const TimeLimit& time_limit,
                       Incumbent& incumbent);

}  // namespace orbitsplit::planner
