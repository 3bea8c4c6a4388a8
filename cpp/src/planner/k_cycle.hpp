// k-cycle elimination (Irnich and Villeneuve, INFORMS Journal on Computing 2006), in networks too large for visited
// sets.
//
// A vertex remembers up to k nodes: its own and the k - 1 before it. A walk over such vertices repeats no node within k
// stages, so its relaxations bound better than those over nodes: k = 2 rules out A-B-A, k = 4 also A-B-C-D-A. Every
// chain that repeats no node is such a walk for any k, so bounds stay valid. Each increase of k multiplies the vertices
// by about the links of a node, which is why those that no better plan goes through are dropped first.
#pragma once

#include <vector>

#include "planner/cost_to_go.hpp"
#include "planner/root.hpp"

namespace orbitsplit::planner {

// By vertex: whether a plan that improves on the incumbent may go through it, as far as the intervals tell.
std::vector<char> promising_vertices(const Tables& t, const Root& root, const TimeLimit& time_limit);

// The number of links between vertices after extend_vertices().
double extended_link_count(const Tables& t, const std::vector<char>& is_kept);

// Increases k by one for the kept vertices and drops the others.
void extend_vertices(const std::vector<char>& is_kept, Tables& t);

}  // namespace orbitsplit::planner
