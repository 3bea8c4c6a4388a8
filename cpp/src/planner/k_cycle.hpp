// Places that remember more of the chain before them, in networks too large to track which nodes are used.
//
// A walk over places of memory m repeats no node within m stages, so that its relaxations bound better than those over
// nodes: memory 2 rules out A-B-A, memory 4 also A-B-C-D-A. Every chain that repeats no node is still such a walk,
// whatever the memory; bounds stay valid. Each node more multiplies the places by about the links of a node, which is
// why places that no better plan goes through are left out first.
#pragma once

#include <vector>

#include "planner/cost_to_go.hpp"
#include "planner/root.hpp"

namespace orbitsplit::planner {

// Which places some plan that beats the incumbent may go through, as far as the intervals tell.
std::vector<char> hopeful_places(const Tables& t, const Root& root);

// Links over which one may go on once every kept place remembers one more node.
double lengthened_links(const Tables& t, const std::vector<char>& is_kept);

// Leaves out the other places and lets the kept ones remember one more node.
void lengthen(const std::vector<char>& is_kept, Tables& t);

}  // namespace orbitsplit::planner
