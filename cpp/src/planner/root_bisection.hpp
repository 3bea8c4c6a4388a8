// The root of a free-order search whose relaxations are large and good: few of them, each where the bound is lowest.
#pragma once

#include "planner/root.hpp"

namespace orbitsplit::planner {

// As explore_root(), but every interval has one relaxation, and the interval with the smallest bound is bisected until
// all are fathomed or a limit is reached: time, a width of `narrowest` relative to the incumbent, or max_bytes of
// relaxations. Bisects nothing without an incumbent.
Root bisect_root(const Problem& problem, const Tables& t, Objective objective, const Relaxation& least,
                 const TimeLimit& time_limit, Incumbent incumbent, double narrowest, std::size_t max_bytes);

}  // namespace orbitsplit::planner
